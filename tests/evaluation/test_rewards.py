"""Choices by a reward: best of N, votes with weights, what the best choice reaches."""

import collections
import functools
import json
import math
import types

import numpy as np
import pytest

from jaxpeft import config as configs
from jaxpeft.errors import InputError
from jaxpeft.evaluation import strategies, tasks
from jaxpeft.evaluation.curves import scale, table
from jaxpeft.evaluation.strategies import chains, report, rewards, votes
from jaxpeft.evaluation.strategies.chains import Options
from jaxpeft.generation.ask import Reply
from tests.support import scripted

NONE = "[invalid]"


@pytest.mark.parametrize(
  ("answers", "scores", "best", "share"),
  [
    # Two answers that are likely together beat one that is likelier than each.
    ("aab", (1.0, 1.0, 1.5), 0, 2 * math.e / (2 * math.e + math.exp(1.5))),
    ("aab", (1.0, 1.0, 1.8), 2, math.exp(0.8) / (2 + math.exp(0.8))),
    ("aba", (0.0, 5.0, -1.0), 1, math.exp(5) / (math.exp(5) + 1 + math.exp(-1))),
    ("aab", (0.0, 0.5, 0.1), 1, None),  # the best text of the answer
    ([NONE, NONE, "b"], (9.0, 9.0, -9.0), 2, math.exp(-18) / (2 + math.exp(-18))),
    ([NONE, NONE], (1.0, 3.0), 1, 0.0),
    (["a"], (-7.0,), 0, 1.0),
  ],
)
def test_votes_with_weights(answers, scores, best, share):
  for shift in (0.0, 1000.0, -1000.0):  # only differences count
    got = votes.weighted(list(answers), [x + shift for x in scores])
    assert got[0] == best
    if share is not None:
      assert got[1] == pytest.approx(share, rel=1e-9)


def test_equal_rewards_are_a_majority():
  rng = np.random.default_rng(0)
  for _ in range(200):
    said = [str(x) for x in rng.integers(0, 4, rng.integers(1, 9))]
    got, want = votes.weighted(said, [0.3] * len(said)), votes.majority(said)
    assert got == (want[0], pytest.approx(want[1]))


def _asked(texts):
  """(problems, an `Ask` that gives these texts to chains of every problem)."""
  asked = scripted.problems(len(texts))

  def ask(requests):
    return [Reply(texts[r.key[0]][r.key[1]], 1, 1, -1.0, True, 2) for r in requests]

  return asked, ask


def test_rewards_are_asked_for_at_once():
  asked, ask = _asked([["a", "b", "b"], ["c", "right", "c"]])
  seen = []

  class Reward:
    def __call__(self, prompt, text):
      raise AssertionError("asked one by one")

    def many(self, pairs):
      seen.append(pairs)
      return np.array([dict(a=3.0, b=2.5, c=1, right=7)[text] for _, text in pairs])

  options = Options(m=3, by="reward", reward=Reward())
  best = strategies.get("best_of_n").run(asked, ask, options)
  vote = strategies.get("weighted_vote").run(asked, ask, options)
  assert [x.text for x in best] == ["a", "right"]
  assert [x.text for x in vote] == ["b", "right"]
  assert [len(x) for x in seen] == [6, 6]
  assert seen[0][4] == ("sample 0", "right")
  one = options._replace(
    reward=lambda prompt, text: {"a": 3.0, "b": 2.5}.get(text, 7.0)
  )
  assert strategies.get("weighted_vote").run(asked, ask, one)[0].text == "b"
  with pytest.raises(InputError, match="need a reward model"):
    strategies.get("weighted_vote").run(asked, ask, Options(m=3))


def test_a_report_says_what_the_best_choice_reaches():
  asked, ask = _asked([["a", "right", "a"], ["a", "b", "c"], ["right"] * 3, ["a"] * 3])
  found = report.answers("self_consistency", ask, asked.rows, asked.task, Options(m=3))
  assert found.answers.accuracy["strict"] == 0.25
  assert found.any_right == 0.5
  assert found.table()["any chain is right"] == "50.0%"
  e = configs.base().eval
  e.strategy = "self_consistency"
  assert found.settings(e)["any_right"] == 0.5
  one = report.answers("self_consistency", ask, asked.rows, asked.task, Options(m=1))
  assert one.any_right is None


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (dict(strategy="weighted_vote"), "needs a reward model"),
    (dict(strategy="best_of_n", by="reward"), r"eval.reward=runs/NAME"),
    (dict(strategy="best_of_n", by="verify", reward="runs/x"), r"with eval.by=reward"),
    (dict(strategy="", reward="runs/x"), "read only by"),
  ],
)
def test_options_of_rewards(change, words):
  e = configs.base().eval
  for key, value in change.items():
    e[key] = value
  with pytest.raises(InputError, match=words):
    strategies.options(e)
  e.strategy, e.by, e.reward = "best_of_n", "reward", "runs/x"
  assert strategies.options(e).reward is None  # it is read later
  assert strategies.options(e, print).reward is print


def _brute(answer, right, score, m, order):
  """{strategy: accuracy} by loops over draws and problems."""
  hits: dict = collections.Counter()
  for draw in order:
    for p, places in enumerate(draw):
      pick = list(places[:m])
      hits["best"] += right[p][max(pick, key=lambda i: score[p][i])]
      hits["any"] += any(right[p][i] for i in pick)
      mass: dict = collections.defaultdict(float)
      for i in pick:
        mass[answer[p][i]] += math.exp(score[p][i])
      mass.pop(-1, None)
      if mass:
        won = max(mass, key=mass.__getitem__)
        hits["vote"] += next(right[p][i] for i in pick if answer[p][i] == won)
      else:
        hits["vote"] += right[p][max(pick, key=lambda i: score[p][i])]
  return {name: hit / (order.shape[0] * order.shape[1]) for name, hit in hits.items()}


@pytest.mark.parametrize("m", [1, 3, 8])
def test_cells_are_what_loops_over_draws_give(m):
  rng = np.random.default_rng(1)
  answer = rng.integers(-1, 4, (30, 8))
  right = answer == rng.integers(0, 4, (30, 1))
  score = 2 * rng.normal(size=(30, 8)) + right
  zeros = np.ones((30, 8, 1), int)
  ends = table.Ends(
    answer[..., None], right[..., None], zeros > 1, zeros, zeros, zeros > 1, zeros > 1
  )
  order = table.choices(30, 8, draws=5)
  want = _brute(answer.tolist(), right.tolist(), score.tolist(), m, order)
  cell = table.weighted("weighted_vote", ends, m, order, score)
  assert cell.right.mean() == want["vote"]
  assert ((cell.confidence >= 0) & (cell.confidence <= 1)).all()
  assert table.likeliest("x", ends, m, order, score).right.mean() == want["best"]
  assert table.any_right(ends, m, order).mean() == want["any"]


def test_scale_test_has_rows_of_rewards():
  texts = [["right", "a", "a", "b"], ["a", "right", "right", "b"], ["a", "a", "b", "c"]]
  asked, given = _asked(texts)

  def ask(requests):  # the greedy answer is the first sample
    assert not any(r.prompt.startswith("verify") for r in requests), "without rounds"
    return given([r._replace(key=(r.key[0], r.key[1] % 4, 0)) for r in requests])

  sizes = scale.Scale(m=1, n=0, samples=4)
  plain = scale.run(asked, ask, sizes, Options())
  found = scale.run(
    asked, ask, sizes, Options(reward=lambda prompt, text: 9.0 * (text == "right"))
  )
  rows = {(x["strategy"], x["m"]): x for x in found["rows"]}
  assert rows["best_of_n, reward", 4]["accuracy"] == pytest.approx(2 / 3)
  assert rows["weighted_vote", 4]["accuracy"] == pytest.approx(2 / 3)
  assert rows["weighted_vote", 4]["minus_vote"]["value"] == pytest.approx(1 / 3)
  assert found["any_right"][4] == pytest.approx(2 / 3)
  assert "4: 0.667" in scale.text(found)
  names = {x["strategy"] for x in plain["rows"]}
  assert not any("reward" in x or "weighted" in x for x in names)


def test_real_responses_and_rewards_by_the_code_of_the_strategies(data_dir):
  """100 problems of MATH with 8 responses and rewards of a real model each.

  What counts as right is recorded with them, by the scorer of Qwen2.5-Math; its one
  error, see test_math.py, is in the published numbers.
  """
  pytest.importorskip("math_verify")
  path = data_dir / "math" / "qwen_math_8_responses.jsonl"
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  maths = tasks.make("math")
  marks = {(r["question"], t): c for r in rows for t, c in zip(r["responses"], r["correct"], strict=True)}  # fmt: skip  # noqa: E501
  scores = {}
  for r in rows:
    scores |= {(maths.prompt(r), t): x for t, x in zip(r["responses"], r["rewards"], strict=True)}  # fmt: skip  # noqa: E501
  task = types.SimpleNamespace(
    RULES=("strict",),
    prompt=maths.prompt,
    completions=maths.completions,
    gold=maths.gold,
    cut=lambda text: text,
    answer=functools.cache(maths.answer),
    score=lambda text, row: {"strict": marks[row["question"], text]},
    roles=lambda options: types.SimpleNamespace(
      stop=dict.fromkeys(("sample", "verify", "correct"), ()),
      limit=dict.fromkeys(("sample", "verify", "correct")),
      sample=lambda row, shots=(): maths.prompt(row),
      answer=lambda text: text,
    ),
  )

  def ask(requests):
    return [Reply(rows[r.key[0]]["responses"][r.key[1]], 1, 1) for r in requests]

  def hits(name, **more):
    options = Options(m=8, reward=lambda *pair: scores[pair], **more)
    found = report.answers(name, ask, rows, task, options)
    assert found.any_right == pytest.approx(0.96)
    return round(100 * found.answers.accuracy["strict"])

  assert hits("self_consistency") == 93
  assert hits("best_of_n", by="reward") == 94
  assert hits("weighted_vote") == 94

  asked = report.problems(task, rows)
  given = chains.run(asked, ask, [1] * 8)
  ends = table.ends(asked, given, 0, "strict")
  order = np.arange(8)[None, None].repeat(100, 1)
  values = rewards.of_samples(asked, Options(reward=lambda *pair: scores[pair]), given)
  assert table.vote("", ends, 8, 0, order).right.sum() == 93
  assert table.likeliest("", ends, 8, order, np.array(values)).right.sum() == 94
  assert table.weighted("", ends, 8, order, values).right.sum() == 94
  assert table.any_right(ends, 8, order).sum() == 96
