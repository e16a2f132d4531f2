"""The task `preference`: scores by reward and log-probability, RewardBench's rules."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft
from jaxpeft import adapters, experiment, objectives, run_data
from jaxpeft import config as configs
from jaxpeft.data import pairs, sources
from jaxpeft.errors import InputError
from jaxpeft.evaluation import (
  evaluate,
  intervals,
  judges,
  problems,
  rewardbench,
  tasks,
)
from jaxpeft.evaluation.intervals import wilson
from jaxpeft.generation.ask import Conversation, Reply, Request
from jaxpeft.objectives import reward as rewards
from jaxpeft.transformer import decoder
from jaxpeft.transformer.decoder import Stream, full_rows

TASK = tasks.make("preference")
ROW = dict(prompt="2+2=", chosen="4", rejected="5")
BEST_OF_4 = dict(prompt="a", chosen=["b"], rejected=list("cde"))


def judged(rows, scores):
  """Answers of an `Ask` that gives these scores, a list for each row."""
  flat = iter([x for own in scores for x in own])
  ask = lambda requests: [Reply(r.completion, 1, 1, next(flat)) for r in requests]  # noqa: E731
  return evaluate.answers(ask, rows, TASK)


@pytest.mark.parametrize(
  ("row", "scores", "strict", "half", "margin"),
  [
    (ROW, (2.0, 1.5), 1, 1, 0.5),
    (ROW, (1.0, 1.5), 0, 0, -0.5),
    (ROW, (1.0, 1.0), 0, 0.5, 0),  # a tie of scores is wrong, as in RewardBench
    (dict(prompt="a", ranked=["b", "c", "d"]), (3.0, 2.0, 1.0), 1, 1, 4 / 3),
    (dict(prompt="a", ranked=["b", "c", "d"]), (3.0, 1.0, 2.0), 2 / 3, 2 / 3, 2 / 3),
    (dict(prompt="a", ranked=["b", "c", "d"]), (1.0, 1.0, 2.0), 0, 1 / 6, -2 / 3),
    # RewardBench 2: 1 / the number of answers with the largest score
    (BEST_OF_4, (2.0, 1, 1, 0), 1, 1, 4 / 3),
    (BEST_OF_4, (2.0, 2, 2, 0), 1 / 3, 1 / 3, 2 / 3),
    (BEST_OF_4, (2.0, 3, 2, 0), 0, 0, 1 / 3),
    (dict(prompt="a", chosen=["b", "c"], rejected=["d"]), (2.0, 3.0, 1.0), 1, 1, 1.5),
    (dict(prompt="a", chosen=["b", "c"], rejected=["d"]), (2.0, 3.0, 2.0), 0, 0, 0.5),
  ],
)  # fmt: skip
def test_credit_of_a_row(row, scores, strict, half, margin):
  got = TASK.judge(row, scores)
  assert got["correct"] == pytest.approx(dict(strict=strict, half=half))
  assert got["margin"] == pytest.approx(margin)
  assert got["gold"] == TASK.parse(row).texts[0][1]
  assert len(TASK.requests(row)) == len(scores) == len(TASK.completions(row))


def test_what_is_asked_and_what_a_record_has():
  chat = dict(
    prompt=[dict(role="user", content="2+2?")],
    chosen=[dict(role="assistant", content="4")],
    rejected=[dict(role="assistant", content="5")],
  )
  implicit = dict(
    chosen="\n\nHuman: 2+2?\n\nAssistant: 4", rejected="\n\nHuman: 2+2?\n\nAssistant: 5"
  )
  rows = [ROW, chat, implicit]
  seen = []

  def ask(requests):
    seen.extend(requests)
    return [Reply(r.completion, 1, 1, float(i)) for i, r in enumerate(requests)]

  found = evaluate.answers(ask, rows, TASK)
  talk = Conversation(chat["prompt"], None)
  begin = "\n\nHuman: 2+2?\n\nAssistant:"
  assert [r.prompt for r in seen] == ["2+2=", "2+2=", talk, talk, begin, begin]
  assert [r.completion for r in seen] == ["4", "5", "4", "5", " 4", " 5"]
  assert found.accuracy == dict(strict=0.0, half=0.0)
  assert found.records[0] == dict(
    prompt="2+2=",
    gold="4",
    correct=dict(strict=0, half=0),
    scores=[0.0, 1.0],
    margin=-1,
  )
  logged = found.logged("base_")
  assert logged["base_samples"] == [], "texts of preferences are never printed"
  assert logged["base_margin"] == -1
  assert json.dumps(found.records)


def test_turns_between_the_prompt_and_the_last_answer_are_read():
  turn = lambda role, text: dict(role=role, content=text)  # noqa: E731
  start = [turn("user", "a")]
  row = dict(
    chosen=[*start, turn("assistant", "b"), turn("user", "c"), turn("assistant", "d")],
    rejected=[
      *start,
      turn("assistant", "x"),
      turn("user", "c"),
      turn("assistant", "y"),
    ],
  )
  (one, good), (other, bad) = TASK.requests(row)
  assert (good, bad) == ("d", "y")
  assert [m["content"] for m in one.messages] == ["a", "b", "c"]
  assert [m["content"] for m in other.messages] == ["a", "x", "c"]


def test_ties_of_texts_do_not_count():
  rows = [ROW, ROW | dict(rejected="4"), ROW]
  found = judged(rows, [(1, 0), (0, 0), (0, 1)])
  assert found.accuracy["strict"] == 0.5
  assert found.more["ties"] == 1
  assert "ties left out" in TASK.lines(found.more)
  with pytest.raises(InputError, match="two answers are equal"):
    judged([ROW | dict(rejected="4")], [(0, 0)])


def test_intervals_are_over_prompts():
  rng = np.random.default_rng(0)
  right = rng.random(200) < 0.7
  rows = [ROW | dict(prompt=f"{i}") for i in range(200)]
  scores = [(float(x), 0.5) for x in right]
  alone = judged(rows, scores)
  assert alone.interval["strict"] == wilson(int(right.sum()), 200)
  four = judged(
    [r for r in rows for _ in range(4)], [s for s in scores for _ in range(4)]
  )
  assert four.accuracy == alone.accuracy
  # Four copies of a pair say nothing more: the interval of 800 is half as wide.
  wide = np.diff(alone.interval["strict"]), np.diff(four.interval["strict"])
  assert wide[1] == pytest.approx(wide[0], rel=0.06)
  assert np.diff(wilson(int(4 * right.sum()), 800)) < 0.6 * wide[0]


def test_the_interval_of_fractions_is_the_bootstrap_of_scipy():
  from scipy import stats

  values = np.random.default_rng(1).random(80)
  low, high = intervals.of_groups(list(values), range(80))
  want = stats.bootstrap((values,), np.mean, method="percentile", rng=0)
  assert low == pytest.approx(want.confidence_interval.low, abs=0.006)
  assert high == pytest.approx(want.confidence_interval.high, abs=0.006)


def test_calibration_of_sigmoid():
  """Margins whose sigmoid is the chance to be right have no calibration error."""
  rng = np.random.default_rng(0)
  gap = 2 * rng.normal(size=4000)  # of the utilities of two answers
  first = rng.random(4000) < 1 / (1 + np.exp(-gap))  # whether the first is chosen
  margins = np.where(first, gap, -gap)  # chosen minus rejected

  def ece(factor):
    records = [TASK.judge(ROW, (factor * x, 0.0)) for x in margins]
    return TASK.totals(records)[2]["ece"]

  assert ece(1.0) < 0.03
  assert ece(4.0) > 0.1
  assert ece(0.1) > 0.1


# ---- RewardBench ---------------------------------------------------------------------


def test_sections_are_weighted_by_the_published_numbers():
  counts = {name: sum(x.values()) for name, x in rewardbench.SECTIONS.items()}
  # The paper has 358, 456, 740 and 1431 prompts; PRM math counts as 984, not as 447.
  assert counts == {
    "Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 984 + 6 * 164
  }  # fmt: skip
  ones = dict.fromkeys(x for own in rewardbench.SECTIONS.values() for x in own)
  shares = {name: (i % 7) / 7 for i, name in enumerate(ones)}
  got = rewardbench.sections(shares)
  for section, weights in rewardbench.SECTIONS.items():
    flat = [shares[x] for x, n in weights.items() for _ in range(n)]
    assert got[section] == pytest.approx(np.mean(flat))
  sections = [got[x] for x in rewardbench.SECTIONS]
  assert got["overall"] == pytest.approx(np.mean(sections))
  half = rewardbench.sections({"hep-go": 0.5, "math-prm": 1.0, "other": 0.0})
  assert half == {"Reasoning": pytest.approx((0.5 * 164 + 984) / (984 + 164))}
  assert rewardbench.overall_2(dict.fromkeys(rewardbench.SUBSETS_2, 0.5)) == 0.5
  assert rewardbench.overall_2({"Math": 1.0}) is None


def _reference_ties(samples):
  """The score of Ties by the paper's words, in loops: {id: [(right, score)]}."""
  stats: dict = {"ref": {}, "tied": {}}
  for name, own in samples.items():
    kind, number = name.split(":")
    good, bad = [s for r, s in own if r], [s for r, s in own if not r]
    spread = max(good) - min(good) if len(good) > 1 else None
    stats[kind][number] = (min(good) > max(bad), spread, min(good) - max(bad))
  ref, tied = stats["ref"], stats["tied"]
  both = sorted(set(ref) & set(tied))
  terms = []
  for n in both:
    spread, gap, least = tied[n][1], tied[n][2], min(ref[n][2], tied[n][2])
    if spread:
      tail = math.tanh(least / spread - 1)
    else:
      tail = 0.0 if least == 0 else math.copysign(1.0, least)
    terms.append((gap > spread, least > spread, tail))
  mean = lambda x: sum(x) / len(x)  # noqa: E731
  return (
    0.3 * mean([x[0] for x in tied.values()])
    + 0.3 * mean([x[0] for x in ref.values()])
    + 0.2 * mean([x[0] for x in terms])
    + 0.2 * mean([x[1] for x in terms])
    + 0.01 * mean([x[2] for x in terms])
  )


@pytest.mark.parametrize("seed", range(6))
def test_ties_are_scored_as_the_paper_says(seed):
  rng = np.random.default_rng(seed)
  found, samples = {}, {}
  for number in range(12):
    for kind, right in (("ref", 1), ("tied", int(rng.integers(2, 5)))):
      if kind == "ref" and number == 11:
        continue  # one without its reference
      wrong = int(rng.integers(1, 5))
      scores = np.round(rng.normal(size=right + wrong), seed % 3)
      scores[:right] += seed
      if seed == 5:
        scores[:right] = 5.0  # no spread
      name = f"{kind}:{number}"
      found[name] = (scores.tolist(), right)
      samples[name] = [(i < right, s) for i, s in enumerate(scores)]
  assert rewardbench.ties(found) == pytest.approx(_reference_ties(samples), abs=1e-12)


def test_ties_by_hand():
  one = {"ref:1": ([2.0, 0.0], 1), "tied:1": ([3.0, 2.0, 0.0], 2)}
  # accurate twice; gap 2 > spread 1; least gap 2 > 1; tanh(2 / 1 - 1)
  assert rewardbench.ties(one) == pytest.approx(1.0 + 0.01 * math.tanh(1))
  poor = {"ref:1": ([0.5, 0.0], 1), "tied:1": ([3.0, 2.0, 0.0], 2)}
  assert rewardbench.ties(poor) == pytest.approx(0.8 + 0.01 * math.tanh(-0.5))
  assert rewardbench.ties({"ref:1": ([2.0, 0.0], 1)}) == pytest.approx(0.3)
  level = {"ref:1": ([1.0, 0.0], 1), "tied:1": ([1.0, 1.0, 1.0], 2)}
  assert rewardbench.ties(level) == pytest.approx(0.3), "0 / 0 counts as 0"
  for bad in ({"x:1": ([1.0, 0.0], 1)}, {"ref:": ([1.0, 0.0], 1)}):
    with pytest.raises(InputError, match="neither"):
      rewardbench.ties(bad)
  with pytest.raises(InputError, match="needs several"):
    rewardbench.ties({"ref:1": ([1.0, 0.0], 1), "tied:1": ([1.0, 0.0], 1)})


def test_subsets_and_sections_of_rows():
  rows = [
    ROW | dict(prompt=f"{i}", subset=x)
    for i, x in enumerate(["hep-go", "hep-go", "math-prm"])
  ]
  found = judged(rows, [(1, 0), (0, 1), (1, 0)])
  assert found.more["subsets"] == {"hep-go": 0.5, "math-prm": 1.0}
  assert found.more["sections"] == {"Reasoning": (0.5 * 164 + 984) / (984 + 164)}
  assert TASK.lines(found.more)["section Reasoning"] == "92.9%"
  second = [
    dict(prompt="a", chosen=["b"], rejected=list("cde"), subset=x, id=f"{i}")
    for i, x in enumerate(rewardbench.SUBSETS_2[:-1])
  ]
  second += [
    dict(prompt="a", chosen=["b"], rejected=["c"], subset="Ties", id="ref:1"),
    dict(prompt="a", chosen=["b", "c"], rejected=["d"], subset="Ties", id="tied:1"),
  ]
  got = judged(second, [(1, 0, 0, 0)] * 5 + [(2.0, 0.0), (3.0, 2.0, 0.0)])
  ties = 1.0 + 0.01 * math.tanh(1)
  assert got.more["subsets"]["Ties"] == pytest.approx(ties)
  assert got.more["sections"]["overall"] == pytest.approx((5 + ties) / 6)
  assert got.accuracy["strict"] == 1.0


@pytest.mark.parametrize(
  ("row", "message"),
  [
    (dict(prompt="a", completion="b"), "has the form"),
    (dict(prompt="a", chosen="b", rejected=["c"]), "must all be texts"),
    (dict(chosen=["b"], rejected=["c"]), "needs a text as `prompt`"),
    (dict(prompt="a", chosen=["b"] * 60, rejected=["c"] * 60), "at most 64"),
    (dict(prompt="a", chosen=["\ud800"], rejected=["c"]), "surrogate"),
  ],
)
def test_rows_without_a_preference_are_bad_input(row, message):
  for ask in (TASK.prompt, TASK.gold, TASK.completions):
    with pytest.raises(InputError, match=message) as e:
      ask(row)
    assert "\n" not in str(e.value)
  e = configs.base().eval
  e.shots = 1
  with pytest.raises(InputError, match="shows no solved rows"):
    tasks.make("preference", e)


@pytest.mark.parametrize("name", ["supervised", "reward"])
def test_rows_of_rewardbench_2_are_judged_without_a_loss(tmp_path, name):
  path = tmp_path / "rows.jsonl"
  path.write_text(json.dumps(BEST_OF_4 | dict(subset="Math", id="1")) + "\n")
  c = configs.base().unlock()
  c.data.eval, c.eval.task, c.objective.name = str(path), "preference", name
  rows = run_data.held_out_rows(c)
  task, objective = problems.task_of(c, rows), objectives.from_config(c)
  assert not problems.has_loss(objective, rows, task)
  with pytest.raises(InputError, match=r"data\.eval, row 1"):
    problems.has_loss(objective, rows, None)
  assert problems.has_loss(objective, [ROW], task) == (name == "reward")


# ---- judges --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy():
  return jaxpeft.load("embedded", dtype="float32", remat="none")


PAIRS = [("Question: 12+13?\nAnswer:", " 12+13=25"), ("Question: 3+4?\nAnswer:", " 7"),
         ("Question: 12+13?\nAnswer:", " 26")]  # fmt: skip


def _direct(model, given):
  """The log-probabilities of answers with their ends, from the logits of all tokens."""
  found = [_ids(model, *pair) for pair in given]
  tokens = np.zeros((len(found), max(len(ids) for ids, _ in found)), np.int32)
  for row, (ids, _) in zip(tokens, found, strict=True):
    row[: len(ids)] = ids
  logits = np.asarray(
    model(tokens, tokens >= 0), np.float64
  )  # causal: the end is unseen
  logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return [
    sum(logp[row, i - 1, ids[i]] for i in range(at, len(ids)))
    for row, (ids, at) in enumerate(found)
  ]


def _ids(model, prompt, answer):
  tok = model.tokenizer
  ids = [*tok.encode(prompt + answer, bos=True), tok.eos_ids[0]]
  return ids, len(tok.encode(prompt, bos=True))


def test_log_probabilities_count_the_end_of_text(toy):
  want = _direct(toy, PAIRS)
  got = judges.Judge(toy, "sum").many(PAIRS)
  np.testing.assert_allclose(got, want, atol=2e-4)
  counts = [len(ids) - at for ids, at in (_ids(toy, *pair) for pair in PAIRS)]
  mean = judges.Judge(toy, "mean").many(PAIRS)
  np.testing.assert_allclose(mean, np.divide(want, counts), atol=2e-4)
  assert judges.Judge(toy).many(PAIRS) == got, "without a head"
  replies = judges.Judge(toy)([Request(*pair) for pair in PAIRS])
  assert [r.logprob for r in replies] == got
  assert [r.tokens for r in replies] == counts


def _tuned(toy, seed=0):
  """The toy with a LoRA that is no longer at its start."""
  rules = {"layers_.*/(attn|mlp)/.*": adapters.LoRA(rank=2)}
  params = adapters.adapt(toy.params, rules, jax.random.key(seed))
  rng = np.random.default_rng(seed)

  def moved(node):
    if not adapters.is_adapted(node):
      return node
    theta = {
      k: jnp.asarray(rng.normal(0, 0.1, x.shape), x.dtype)
      for k, x in node.theta.items()
    }
    return type(node)(node.frozen, theta, node.adapter)

  return toy.replace(params=jax.tree.map(moved, params, is_leaf=adapters.is_adapted))


def test_the_change_is_against_the_base(toy):
  tuned = _tuned(toy)
  now, before = (judges.Judge(m, "sum").many(PAIRS) for m in (tuned, toy))
  assert np.abs(np.subtract(now, before)).min() > 0.01
  got = judges.Judge(tuned, "change", beta=0.3).many(PAIRS)
  np.testing.assert_allclose(got, 0.3 * np.subtract(now, before), atol=1e-3)
  assert judges.Judge(toy, "change").many(PAIRS) == before, "a base has no change"


def _with_head(model, seed=0):
  w = np.random.default_rng(seed).normal(size=(model.config.width, 1))
  return model.replace(params=model.params | {"score": jnp.asarray(w, jnp.float32)})


def test_rewards_are_the_head_on_the_last_token(toy, monkeypatch):
  model = _with_head(toy)
  given = [*PAIRS, *(("Q: " + "1 " * n + "\nA:", " 2") for n in (1, 20))]
  ids = [_ids(model, *pair)[0] for pair in given]
  end = toy.tokenizer.eos_ids[0]
  tokens = np.zeros((len(ids), max(map(len, ids))), np.int32)
  for row, own in zip(tokens, ids, strict=True):
    row[: len(own)] = own
  stream = Stream(tokens, full_rows(tokens.shape))
  read = jax.jit(lambda params: decoder.hidden(model.transformer, params, stream))
  hidden = np.asarray(read(model.params))
  for pool, cut in (("last", 0), ("hf", 1)):
    monkeypatch.setattr(rewards, "padding", lambda tokenizer: end)
    last = np.array([len(own) - 1 - cut for own in ids])
    want = hidden[np.arange(len(ids)), last] @ model.params["score"][:, 0]
    for size in (None, 2):
      got = judges.Judge(model, pool=pool, batch_size=size).many(given)
      np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)
  assert judges.Judge(model).many([]) == []


def test_a_conversation_is_scored_as_it_is_trained(toy):
  """The tokens are those of `data.pairs`, with what the template puts at the end."""
  tok, turns = toy.tokenizer, [dict(role="user", content="12")]
  says = lambda text: [dict(role="assistant", content=text)]  # noqa: E731
  row = dict(prompt=turns, chosen=says("3"), rejected=says("4"))
  group = pairs.encode([row], tok, 500).examples[0]
  made = [judges._chat(Conversation(turns), x, tok) for x in ("3", "4")]
  assert [x for ids, _ in made for x in ids] == group.tokens.tolist()
  learned = [i >= at for ids, at in made for i in range(len(ids))]
  assert learned == group.supervised.tolist()


def test_a_run_of_this_task_asks_a_judge(toy):
  c = configs.base().unlock()
  c.eval.task = "preference"
  model = _with_head(toy)
  ask = experiment.ask(c, model)
  assert isinstance(ask, judges.Judge)
  rows = sources.embedded("prices_pairs/test")[:12]
  found = evaluate.answers(ask, rows, TASK)
  own = [r["margin"] for r in found.records]
  texts = [(row["prompt"], row[x]) for row in rows for x in ("chosen", "rejected")]
  want = np.reshape(judges.Judge(model, "reward").many(texts), (-1, 2))
  np.testing.assert_allclose(own, want[:, 0] - want[:, 1], rtol=1e-4, atol=1e-4)
  c.objective.name, c.objective.beta, c.eval.prefer = "preference", 0.3, "change"
  judge = judges.of_run(c, model)
  assert (judge.by, judge.beta) == ("change", 0.3)
  with pytest.raises(InputError, match="'mean'"):
    judges.check("means")
  with pytest.raises(InputError, match="no reward head"):
    judges.reward_of(c, toy)
  with pytest.raises(InputError, match="positions"):
    judges.Judge(model).many([("1 " * 5000, " 2")])
  with pytest.raises(InputError, match="no reward head"):
    judges.Judge(toy, "reward").many(PAIRS)
