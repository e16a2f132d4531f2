"""Strategies against scripted models: rates, counts, votes, degenerate cases."""

import random
import types

import pytest

from jaxpeft import config as configs
from jaxpeft import options as checks
from jaxpeft.errors import InputError
from jaxpeft.evaluation import strategies, tasks
from jaxpeft.evaluation.curves import markov, table
from jaxpeft.evaluation.strategies import chains, report, roles, votes
from jaxpeft.evaluation.strategies.chains import Options
from jaxpeft.generation.ask import Conversation, Reply, Request
from tests.support import scripted

# science: (p0, t, f, c, k) = (.4, .9, .3, .5, .6), n -> (P(right), calls of a chain)
ORACLE = {
  0: (0.400, 1.000),
  1: (0.594, 2.460),
  2: (0.66374, 3.1016),
  3: (0.690975, 3.354436),
  5: (0.705841, 3.492498),
}
RATES = (0.4, 0.9, 0.3, 0.5, 0.6)


@pytest.mark.parametrize("n", ORACLE)
def test_the_prediction_is_that_of_the_published_recursion(n):
  accuracy, calls = markov.predict(*RATES, n)
  assert accuracy == pytest.approx(ORACLE[n][0], abs=2e-6)
  assert calls == pytest.approx(ORACLE[n][1], abs=2e-6)


def _ends(rates, count, n, seed=0):
  asked = scripted.problems(count)
  found = chains.run(asked, scripted.Script(*rates, seed=seed), [1 + 2 * n] * 10)
  return table.ends(asked, found, n, "strict")


def test_the_engine_gives_the_rates_of_the_model():
  ends = _ends(RATES, 2000, 5)
  for n, (accuracy, calls) in ORACLE.items():
    assert ends.right[..., n].mean() == pytest.approx(accuracy, abs=0.015)
    assert ends.calls[..., n].mean() == pytest.approx(calls, abs=0.03)
  found = markov.measure(ends, 5)
  assert found[:5] == pytest.approx(RATES, abs=0.03)
  for row in markov.compare(ends, found, 5):
    assert row["by_round"] == pytest.approx(row["accuracy"], abs=0.005)
    assert row["pooled_calls"] == pytest.approx(row["calls"], abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_the_engine_at_two_hundred_thousand_chains(seed):
  rng = random.Random(seed)
  rates = RATES if not seed else tuple(rng.uniform(0.05, 0.95) for _ in RATES)
  ends = _ends(rates, 20_000, 5, seed)
  for n in range(6):
    accuracy, calls = markov.predict(*rates, n)
    assert ends.right[..., n].mean() == pytest.approx(accuracy, abs=0.005)
    # The calls of a chain vary more, from 1 to 11; their mean is known to about 0.006.
    assert ends.calls[..., n].mean() == pytest.approx(calls, abs=0.025)


@pytest.mark.parametrize(
  ("cycle", "calls", "counts"),
  [
    (chains.SETS, 7, dict(sample=1, verify=3, correct=3)),
    (("correct",), 4, dict(sample=1, correct=3)),
    (("verify", "sample"), 7, dict(sample=4, verify=3)),
  ],
)
def test_counters_are_exact_where_nothing_is_accepted(cycle, calls, counts):
  ask, asked, m = scripted.Script(0, 0, 0, 0, 0), scripted.problems(5), 4
  found = chains.run(asked, ask, [calls] * m, cycle)
  got = chains.counters(x for own in found for one in own for x in one.calls)
  assert {op: x["calls"] for op, x in got.items()} == {
    op: 5 * m * x for op, x in counts.items()
  }
  assert ask.calls == calls  # one list of requests for all chains and problems
  for op, x in got.items():
    given, new = (3, 2) if op == "verify" else (5, 3)
    assert (x["input_tokens"], x["output_tokens"]) == (
      given * x["calls"], new * x["calls"],
    )  # fmt: skip


def test_the_most_calls_of_sets_are_m_times_one_and_two_n():
  ask, rows = scripted.Script(0, 0, 0, 0, 0), scripted.problems(3).rows
  found = report.answers("sets", ask, rows, scripted.Task(), Options(m=4, n=3))
  assert sum(x["calls"] for x in found.counters.values()) == 3 * 4 * (1 + 2 * 3)


def test_a_chain_that_is_too_long_for_the_model_ends():
  asked = scripted.problems(2)
  never = scripted.Script(0, 0, 0, 0, 0)
  short = asked._replace(fits=lambda x: x.key[1] != 1 or x.key[2] < 3)
  found = chains.run(short, never, [7, 7])
  assert [[(len(x.calls), x.full) for x in own] for own in found] == [
    [(7, False), (3, True)]
  ] * 2
  assert not any(x.accepted for own in found for x in own)
  with pytest.raises(InputError, match="problem 1: the prompt of a sample"):
    chains.run(asked._replace(fits=lambda x: False), never, [7])


def test_what_fits_into_a_model():
  size = types.SimpleNamespace(max_positions=100)
  tokens = types.SimpleNamespace(encode=lambda text, bos=False: list(text))
  model = types.SimpleNamespace(config=size, tokenizer=tokens)
  config = configs.base()
  config.eval.max_new_tokens = 60
  fits = report.fits(config, model)
  assert fits(Request("x" * 40))
  assert not fits(Request("x" * 41))
  assert fits(Request("x" * 90, max_new_tokens=10))
  assert not fits(Request("x" * 91, max_new_tokens=10))
  assert fits(Request("x" * 3))


def test_an_accepted_chain_asks_no_more():
  ask, asked = scripted.Script(1, 1, 0, 0, 0), scripted.problems(3)
  found = chains.run(asked, ask, [9, 9])
  assert [len(x.calls) for own in found for x in own] == [2] * 6
  assert ask.calls == 2


def test_what_each_request_says_and_its_key():
  asked = scripted.problems(2)
  asked.roles.limit["verify"], asked.roles.stop["verify"] = 7, (".",)
  try:
    ask = scripted.Script(0, 0, 0, 0, 0, by_key=True)
    chains.run(asked, ask, [3, 2], temperatures=(0.1, 0.2, 0.3))
  finally:
    asked.roles.limit["verify"], asked.roles.stop["verify"] = None, ()
  by = {x.key: x for x in ask.seen}
  assert sorted(by) == [
    (p, c, number) for p in range(2) for c in range(2) for number in range(3 - c)
  ]
  assert [by[1, 0, i].temperature for i in range(3)] == [0.1, 0.2, 0.3]
  assert by[0, 1, 1].max_new_tokens == 7
  assert by[0, 1, 1].stop == (".",)
  assert by[0, 0, 2].max_new_tokens is None
  assert by[0, 0, 2].stop == ()


def test_a_smaller_m_and_n_are_cut_from_a_larger_run():
  asked = scripted.problems(20)

  def run(m, n):
    ask = scripted.Script(*RATES, by_key=True)
    return chains.run(asked, ask, [1 + 2 * n] * m)

  large, small = run(6, 4), run(3, 2)
  assert [[c.cut(5) for c in own[:3]] for own in large] == [
    [c.cut(5) for c in own] for own in small
  ]


def test_a_history_has_all_solutions_and_analyses():
  seen = []

  class Own(scripted.Roles):
    def verify(self, row, history, answer):
      seen.append(("verify", list(history), answer))
      return super().verify(row, history, answer)

    def correct(self, row, history):
      seen.append(("correct", list(history)))
      return super().correct(row, history)

  asked = scripted.problems(1)._replace(roles=Own())
  script = scripted.Script(0, 0, 0, 0, 0)
  chains.run(asked, script, [5])
  w = "wrong0"
  assert seen == [
    ("verify", [], w),
    ("correct", [(w, "no")]),
    ("verify", [(w, "no")], w),
    ("correct", [(w, "no"), (w, "no")]),
  ]
  seen.clear()
  chains.run(asked, script, [4], ("verify", "sample"))
  assert seen == [("verify", [], w), ("verify", [], w)]  # a new sample knows nothing
  seen.clear()
  chains.run(asked, script, [3], ("correct",))
  assert seen == [("correct", [(w, "")]), ("correct", [(w, ""), (w, "")])]


def _texts(name, **options):
  ask, rows = scripted.Script(*RATES, by_key=True), scripted.problems(30).rows
  found = report.answers(name, ask, rows, scripted.Task(), Options(**options))
  return [x["text"] for x in found.answers.records]


def test_degenerate_cases():
  assert _texts("sets", m=5, n=0) == _texts("self_consistency", m=5)
  assert _texts("sets", m=1, n=4) == _texts("self_refine", m=5, n=4)
  assert _texts("sets", m=5, n=4) != _texts("self_consistency", m=5)
  assert _texts("best_of_n", m=1) == _texts("self_consistency", m=1)


def test_votes_and_ties():
  assert votes.majority(["a", "b", "b"]) == (1, 2 / 3)
  assert votes.majority(["a", "b", "b", "a"]) == (0, 0.5)  # the first of equals
  assert votes.majority(["a", "b", "b"], [0]) == (0, 1.0)
  no = "[invalid]"
  assert votes.majority([no, no, "a"]) == (2, 1 / 3)
  assert votes.majority([no, no]) == (0, 0.0)


def test_accepted_chains_vote_first():
  asked = scripted.problems(1)

  class Ask:
    """Two chains say a, and are refused; one says b, and is accepted."""

    def __call__(self, requests):
      text = {0: "a", 1: "a", 2: "b"}
      verdict = ["no", "no", "yes"]
      return [
        Reply(verdict[r.key[1]] if r.key[2] % 2 else text[r.key[1]], 1, 1)
        for r in requests
      ]

  def run(name, **more):
    options = Options(m=3, n=1, **more)
    return strategies.get(name).run(asked, Ask(), options)[0][:2]

  assert run("sets") == ("a", 2 / 3)
  assert run("sets", vote_over="verified_first") == ("b", 1.0)
  assert run("best_of_n") == ("b", 1 / 3)


@pytest.mark.parametrize("by", ["logprob", "mean_logprob", "reward"])
def test_best_of_n_by_scores(by):
  logprobs, spent = [-4.0, -6.0, -5.0], [2, 6, 2]

  def ask(requests):
    return [
      Reply(f"t{r.key[1]}", 1, 1, logprobs[r.key[1]], True, spent[r.key[1]])
      for r in requests
    ]

  best = dict(logprob="t0", mean_logprob="t1", reward="t2")[by]
  options = Options(m=3, by=by, reward=lambda prompt, text: float(text[1]))
  got = strategies.get("best_of_n").run(scripted.problems(1), ask, options)
  assert got[0][:2] == (best, 1 / 3)


def test_best_of_n_by_choice_asks_once_more():
  task = tasks.make("exact")
  rows = [dict(prompt="2+2=", completion="4")]
  seen = []

  def ask(requests):
    seen.extend(requests)
    return [
      Reply("The best solution is SOLUTION **1**.", 5, 9)
      if r.key[2]
      else Reply(" 3" if r.key[1] else " 4", 1, 1)
      for r in requests
    ]

  found = report.answers("best_of_n", ask, rows, task, Options(m=3, by="choice"))
  assert found.answers.records[0]["text"] == " 4"  # not the majority
  assert found.counters["choose"] == dict(calls=1, input_tokens=9, output_tokens=5)
  assert seen[-1].temperature == 0
  assert "SOLUTION 3:\n3" in seen[-1].prompt
  with pytest.raises(InputError, match="no prompt to choose"):
    report.answers(
      "best_of_n", ask, [dict(number=0)], scripted.Task(), Options(m=2, by="choice")
    )


def test_greedy_asks_what_no_strategy_asks():
  asked, seen = scripted.problems(2), []

  def ask(requests):
    seen.extend(requests)
    return [Reply("right", 1, 1) for _ in requests]

  shots = [[dict(number=9)]] * 2
  report.answers("greedy", ask, asked.rows, asked.task, None, shots)
  report.answers("chain_of_thought", ask, asked.rows, asked.task, None, shots)
  assert [x.prompt for x in seen[:2]] == ["1 shots, problem 0", "1 shots, problem 1"]
  assert seen[2].prompt == "1 shots, problem 0 Let's think step by step."
  assert all(x.temperature == 0 for x in seen)


def test_verdicts_of_the_papers_prompts():
  own = roles.Paper(tasks.make("exact"))
  yes, no = "The proposed solution is correct", "The proposed solution is incorrect"
  assert own.verdict(f"Step 1 is wrong?\n{yes}.")
  assert own.verdict(yes.upper().replace("CORRECT", "**correct**"))
  for text in ("", "It is correct", no, f"Not so: {no}.", f'"{yes}" or "{no}"'):
    assert not own.verdict(text)
  assert not own.verdict(
    "The constraint is correct. The proposed solution is not correct"
  )
  assert own.verdict(f"At first {no}, but then: {yes}")
  assert not own.verdict(f"{yes}? The proposed solution is not correct.")
  assert own.chosen("SOLUTION 1 is bad; the best is SOLUTION (2)", 2) == 1
  assert own.chosen("SOLUTION 7", 2) is None


def test_the_papers_prompts_have_its_structure():
  gsm8k = types.SimpleNamespace(prompt=tasks.make("gsm8k").prompt, WHAT="TASK")
  row = dict(question="How many?", answer="#### 2")
  own = roles.Paper(gsm8k)
  shown = own.sample(row, [dict(question="Who?", answer="I #### 1")])
  assert shown.startswith("Question: Who?\nAnswer: I #### 1\n\nQuestion: How many?\n\n")
  assert "list all the constraints" in shown
  assert shown.endswith("\nAnswer:")
  check = own.verify(row, [("old", "bad")], "new")
  assert "TASK:\nHow many?\n\nPROPOSED SOLUTION:\nnew\n" in check
  assert "old" not in check
  fix = own.correct(row, [("old", "bad"), ("new", "worse")])
  pairs = [("old", "bad"), ("new", "worse")]
  shown = [f"PROPOSED SOLUTION:\n{x}\n\nANALYSIS:\n{y}\n\n" for x, y in pairs]
  assert "".join(shown) in fix


def test_a_conversation_stays_one():
  row = dict(
    messages=[
      dict(role="system", content="S"),
      dict(role="user", content="Q"),
      dict(role="assistant", content="A"),
    ]
  )
  own = roles.Paper(tasks.make("exact"))
  for prompt in (own.sample(row), own.verify(row, [], "x"), own.correct(row, [])):
    assert isinstance(prompt, Conversation)
    assert [m["role"] for m in prompt.messages] == ["system", "user"]
    assert "Q" in prompt.messages[1]["content"]


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (dict(strategy="set"), "'sets'"),
    (dict(m=0), "eval.m 0 is not from 1"),
    (dict(n=-1), "eval.n -1"),
    (dict(m=10**9), "eval.m 1000000000"),
    (dict(vote_over="verified"), "verified_first"),
    (dict(by="logprobs"), "'logprob'"),
    (dict(temperatures=(1.0,)), "three numbers"),
    (dict(temperatures=(1.0, float("nan"), 1.0)), "three numbers"),
    (dict(strategy="best_of_n", by="reward"), "reward model"),
  ],
)
def test_bad_options(change, words):
  e = configs.base().eval
  for key, value in change.items():
    e[key] = value
  config = configs.base()
  config.eval, config.adapt.full = e, dict(name="Full", match=".*")
  with pytest.raises(InputError, match=words):
    checks.check(config)


def test_old_saved_configs_get_the_defaults():
  saved = configs.to_json(configs.base())
  for key in ("strategy", "m", "n", "vote_over", "by", "temperatures"):
    del saved["eval"][key]
  assert configs.filled(saved)["eval"] == configs.to_json(configs.base())["eval"]


def test_a_task_that_scores_completions_is_refused():
  rows = [dict(prompt="p", completion=x) for x in "ab"]
  task = tasks.make("choice", rows=rows)
  with pytest.raises(InputError, match=r"eval.choice=generation"):
    report.problems(task, rows)


def test_rates_by_round():
  found = markov.measure(_ends(RATES, 200, 3), 3)
  assert sum(found.count_c_by_round) == found.count["c"]
  # 1 wrong; refused; c .5, then .1 in each later round: .5 + .5 * .1 + .45 * .1
  rates = 0.0, 1.0, 0.0, [0.5, 0.1], 0.0
  assert markov.predict(*rates, 3)[0] == pytest.approx(0.5 + 0.05 + 0.045)
