"""The embedded task `prices`: problems, demonstrator, pairs, scores, prompts."""

import itertools
import math
import random
import re

import numpy as np
import pytest

import jaxpeft
from jaxpeft import assets
from jaxpeft.data import prices, sources, tokenizer
from jaxpeft.evaluation import tasks
from jaxpeft.evaluation.strategies import report
from jaxpeft.evaluation.strategies.chains import Options
from jaxpeft.generation.ask import Reply

ROW = dict(prices=[38, 16, 40], total=54)
TASK = tasks.make("prices")


def solves(row, text) -> bool:
  """By brute force over all texts that are a right answer with a right sum."""
  twos = itertools.permutations(row["prices"], 2)
  return text in {f" {a}+{b}={a + b}" for a, b in twos if a + b == row["total"]}


def test_problems_differ_have_one_solution_and_belong_to_one_split():
  found = {split: prices.problems(split, 1500, seed=3) for split in ("train", "test")}
  keys = {}
  for split, rows in found.items():
    for row in rows:
      assert len(set(row["prices"])) == 3
      assert 10 <= min(row["prices"]) < max(row["prices"]) <= 49
      twos = itertools.combinations(row["prices"], 2)
      assert sum(a + b == row["total"] for a, b in twos) == 1
    keys[split] = {(*sorted(row["prices"]), row["total"]) for row in rows}
    assert len(keys[split]) == 1500, "no problem comes twice"
  assert not keys["train"] & keys["test"]
  # The order of the prices does not decide: a shuffled problem stays in its split.
  for split, rows in found.items():
    for row in rows[:50]:
      key = sorted(random.Random(0).sample(row["prices"], 3)), row["total"]
      assert prices._split(key) == split
  assert prices.problems("test", 20, 3) == found["test"][:20]
  assert prices.problems("test", 20, 4) != found["test"][:20]


def test_the_embedded_sets_share_no_problem():
  names = [f"{x}/{y}" for x in ("prices", "prices_pairs") for y in ("train", "test")]
  found = {name: sources.embedded(name) for name in names}
  assert [len(x) for x in found.values()] == [12_000, 1_000, 5_000, 500]
  keys = [{(*sorted(r["prices"]), r["total"]) for r in x} for x in found.values()]
  assert len(set().union(*keys)) == sum(map(len, keys)) == 18_500


def test_the_demonstrator_adds_correctly_and_is_right_two_times_of_three():
  rows, ordered = sources.embedded("prices/train"), []
  for row in rows:
    parts = re.fullmatch(r" (\d+)\+(\d+)=(\d+)", row["completion"])
    a, b, total = map(int, parts.groups())
    ordered.append(a < b)
    assert a + b == total
    assert a != b
    assert {a, b} <= set(row["prices"])
    assert (total == row["total"]) == prices.right(row, row["completion"])
    assert row["prompt"] == TASK.prompt(row)
  share = np.mean([solves(row, row["completion"]) for row in rows])
  want = prices.SKILL + (1 - prices.SKILL) / 3  # any two are right by chance
  assert abs(share - want) < 4 * math.sqrt(want * (1 - want) / len(rows))
  assert abs(np.mean(ordered) - 0.5) < 0.03, "in any order"


def test_pairs_are_a_right_and_a_wrong_answer():
  for row in sources.embedded("prices_pairs/test"):
    assert solves(row, row["chosen"])
    assert not solves(row, row["rejected"])
    a, b, total = map(int, re.findall(r"\d+", row["rejected"]))
    assert a + b == total != row["total"]


@pytest.mark.parametrize(
  ("text", "said", "right"),
  [
    (" 16+38=54", "16+38", True),
    (" 38+16=54", "16+38", True),
    ("38+16", "16+38", True),
    (" 38+16=99", "16+38", True),  # the working is not scored
    (" 38+16=", "16+38", True),
    (" 16+38=54\nQ: 1", "16+38", True),
    (" 38+40=78", "38+40", False),
    (" 14+40=54", "14+40", False),  # no price
    (" 54", "[invalid]", False),
    ("", "[invalid]", False),
    (" 16+38+0=54", "[invalid]", False),
    (" -16+38", "[invalid]", False),
    (" 16+38=54 or 38+40", "[invalid]", False),
    (f" 16+{'9' * 5000}", "[invalid]", False),
  ],
)
def test_answers(text, said, right):
  assert TASK.answer(text) == said
  assert TASK.score(text, ROW) == {"strict": right}


def test_prompts():
  assert TASK.prompt(ROW) == "Q: 54 of 38 16 40\nA:"
  assert TASK.gold(ROW) == "16+38=54"
  shot = dict(prices=[10, 30, 12], total=22)
  assert TASK.prompt(ROW, [shot]).startswith("Q: 22 of 10 30 12\nA: 10+12=22\nQ: 54 of")
  assert TASK.completions(ROW) == ()


def test_an_answer_and_its_end_fit_into_the_limit():
  tok = tokenizer.load(assets.TINY)
  longest = max(
    len(tok.encode(row["prompt"] + row["completion"], bos=True)) + 1
    for row in sources.embedded("prices/test")
  )
  assert longest <= 32, "data.max_tokens of configs/preference_toy.py"
  ids = tok.encode(prices.prompt(ROW) + " 48+49=97", bos=True)
  new = len(ids) - len(tok.encode(prices.prompt(ROW), bos=True))
  assert new + 1 <= prices.NEW


def test_samples_vote_and_nothing_verifies():
  texts = (" 38+40=78", " 16+38=54", " 38+16=54")

  def ask(requests):
    assert all(x.max_new_tokens == prices.NEW for x in requests)
    assert all(x.prompt == TASK.prompt(ROW) for x in requests)
    return [Reply(texts[x.key[1]], 9, 20, -1.0, True, 10) for x in requests]

  found = report.answers("self_consistency", ask, [ROW], TASK, Options(m=3))
  assert found.answers.accuracy == {"strict": 1.0}
  for name in ("sets", "sets_no_verify", "best_of_n"):
    with pytest.raises(jaxpeft.InputError, match="has not learned to"):
      report.answers(name, ask, [ROW], TASK, Options(m=3))
