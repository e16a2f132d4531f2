"""MATH: equal answers count, whatever their form; nothing hangs."""

import collections
import itertools
import json

import pytest

from jaxpeft.data import sources
from jaxpeft.errors import InputError
from jaxpeft.evaluation import equivalence, tasks

pytest.importorskip("math_verify")


def task():
  return tasks.make("math")


@pytest.fixture(autouse=True)
def _patience(monkeypatch):
  """A busy machine may take long for an easy comparison."""
  monkeypatch.setattr(equivalence, "SECONDS", 300.0)


def row(answer):
  return dict(problem="?", solution=f"It is $\\boxed{{{answer}}}$.")


@pytest.mark.parametrize(
  ("gold", "text", "strict", "flexible"),
  [
    ("\\frac12", "so \\boxed{0.5}", True, True),
    ("\\frac12", "so $\\frac{2}{4}$", False, True),
    (
      "\\frac12",
      "\\boxed{\\frac13}, no, \\boxed{\\frac{1}{2}}",
      True,
      False,
    ),  # it reads both as one
    ("\\frac12", "\\boxed{\\frac13}", False, False),
    ("10{,}000", "\\boxed{10000}", True, True),
    ("(3, \\pi/2)", "\\boxed{\\left(3, \\frac{\\pi}{2}\\right)}", True, True),
    ("(3, \\pi/2)", "\\boxed{\\left(\\frac{\\pi}{2}, 3\\right)}", False, False),
    ("\\text{Evelyn}", "\\boxed{\\text{Evelyn}}", True, True),
    ("2", "", False, False),
  ],
)
def test_answers_are_compared_by_their_value(gold, text, strict, flexible):
  assert task().gold(row(gold)) == gold
  assert task().score(text, row(gold)) == {"strict": strict, "flexible": flexible}


def test_equal_answers_vote_together():
  answers = {task().answer(f"\\boxed{{{x}}}") for x in ("0.5", "\\frac12", "\\frac24")}
  assert len(answers) == 1
  assert task().answer("no box: 3") == "[invalid]"
  assert task().answer("no box: 3", "flexible") == "3"


def test_what_takes_long_is_wrong_and_the_next_is_not():
  assert task().score("\\boxed{2}", row("2"))["strict"]
  with pytest.MonkeyPatch.context() as short:
    short.setattr(equivalence, "SECONDS", 1.0)
    for text in ("9^{9^{9^9}}", "99999999999!"):
      assert not any(task().score(f"\\boxed{{{text}}}", row("2")).values())
  assert task().score("\\boxed{3}", row("3"))["strict"]


def test_prompts_are_the_harness_and_what_is_trained_on():
  problem = dict(problem="1+1?", solution="\\boxed{2}")
  assert task().prompt(problem) == "Problem:\n1+1?\n\nSolution:"
  shown = task().prompt(problem, [problem])
  assert (
    shown == "Problem:\n1+1?\n\nSolution: \\boxed{2}\n\nProblem:\n1+1?\n\nSolution:"
  )
  pair = sources.prompt_and_completion(problem, "problem/solution")
  assert pair == ("Problem:\n1+1?\n\nSolution:", " \\boxed{2}")
  assert task().cut(" \\boxed{2}\n\nProblem:\nnext") == " \\boxed{2}\n\n"
  assert task().gold(dict(question="?", answer="3")) == "3"
  with pytest.raises(InputError, match="right answer"):
    task().gold(dict(problem="?", solution="none"))
  with pytest.raises(InputError, match="needs rows with"):
    task().prompt(dict(text="?"))


def test_real_responses_and_their_votes(data_dir):
  """What the scorer of Qwen2.5-Math recorded; it errs once, on a gold of "10{,}000"."""
  path = data_dir / "math" / "qwen_math_8_responses.jsonl"
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  hits, differ = collections.Counter(), []
  for r in rows:
    right = [task().score(text, r)["strict"] for text in r["responses"]]
    differ += [r["answer"] for a, b in zip(right, r["correct"], strict=True) if a != b]
    votes = [task().answer(text) for text in r["responses"]]
    most = collections.Counter(votes).most_common(1)[0][0]
    best = max(range(8), key=lambda i: r["rewards"][i])
    recorded = r["correct"] if r["answer"] == "10{,}000" else right
    for name, x in (("ours", right), ("recorded", recorded)):
      hits[f"{name} maj"] += x[votes.index(most)]
      hits[f"{name} rm"] += x[best]
      hits[f"{name} pass"] += any(x)
  assert differ == ["10{,}000"]  # 70000 / 7, to which one response is "10000"
  assert [hits[f"recorded {x}"] for x in ("maj", "rm", "pass")] == [93, 94, 96]
  assert [hits[f"ours {x}"] for x in ("maj", "rm", "pass")] == [93, 95, 97]


def test_solutions_of_math500_are_right_and_altered_ones_are_not(data_dir):
  path = data_dir / "math" / "math500.jsonl"
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert len(rows) == 500
  for r in rows:
    assert all(task().score(r["solution"], r).values())
  for r, other in itertools.pairwise(rows[:120]):
    assert not task().score(f"\\boxed{{{r['answer']}+1}}", r)["strict"]
    if r["answer"] not in other["answer"]:
      assert not task().score(other["solution"], r)["strict"], r["answer"]
