"""The embedded task `budget`: its problems, its checks, and prompts as in training."""

import itertools
import pathlib
import random
import re

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import jaxpeft
from jaxpeft import assets, config_file, objectives
from jaxpeft.data import budget, encode, sources, tokenizer
from jaxpeft.evaluation import tasks
from jaxpeft.evaluation.tasks import budget as task

ROOT = pathlib.Path(__file__).parents[2]
ROW = dict(prices=[34, 12, 57, 45, 31, 22, 18, 40], total=91)
ROLES = task.roles(None)


@pytest.fixture(scope="module")
def tok():
  return tokenizer.load(assets.TINY)


def solves(row, answer) -> bool:
  """By brute force over all texts that are a solution."""
  pairs = itertools.permutations(row["prices"], 2)
  return answer.strip() in {f"{a}+{b}" for a, b in pairs if a + b == row["total"]}


def texts(row):
  return "".join(x["text"] for x in row["segments"])


def test_problems_have_one_solution_and_belong_to_one_split():
  found = {split: budget.problems(split, 400, seed=3) for split in ("train", "test")}
  for row in [*found["train"], *found["test"]]:
    assert len(set(row["prices"])) == 8
    assert 10 <= min(row["prices"]) < max(row["prices"]) <= 49
    pairs = itertools.combinations(row["prices"], 2)
    assert sum(a + b == row["total"] for a, b in pairs) == 1
    assert solves(row, budget.gold(row))
  keys = [
    {(*sorted(row["prices"]), row["total"]) for row in rows} for rows in found.values()
  ]
  assert not keys[0] & keys[1]
  # The order of the prices does not decide: a shuffled problem stays in its split.
  for split, rows in found.items():
    for row in rows[:50]:
      row["prices"].sort()
      assert budget._split(row) == split
  drawn = [budget._draw(random.Random(i)) for i in range(2000)]
  assert 0.1 < np.mean([budget._split(row) == "test" for row in drawn]) < 0.15


def test_problems_are_the_same_every_time_and_others_for_another_seed():
  a, b, c = (budget.problems("test", 20, seed) for seed in (0, 0, 1))
  assert a == b
  assert not [row for row in a if row in c]
  assert budget.rows("test", 5, 0) == sources.embedded("budget/test")[:5]


def test_transcripts_end_with_the_right_try_and_check_every_try():
  rows = budget.rows("train", 400, seed=1)
  counts = []
  for row in rows:
    head, *tries = texts(row).split("Try:")
    assert head == f"Q: {row['total']} of {' '.join(map(str, row['prices']))}\n"
    for number, line in enumerate(tries, 1):
      a, b, total, verdict = re.fullmatch(
        r" (\d+)\+(\d+)=\d+/(\d+) (yes|no)\n?", line
      ).groups()
      assert f"={int(a) + int(b)}/{row['total']} " in line
      assert total == str(row["total"])
      assert (verdict == "yes") == solves(row, f"{a}+{b}") == (number == len(tries))
    assert len(set(tries)) == len(tries)
    counts.append(len(tries) - 1)
    assert [x["text"] for x in row["segments"] if not x["learn"]][1::2] == [
      f"{line.split('=')[0]}=" for line in tries[:-1]
    ]
  assert 0.28 < np.mean([count == 0 for count in counts]) < 0.42
  assert max(counts) == budget.MOST == 8


def test_half_of_the_wrong_tries_are_the_solver_s_own():
  plain = budget.problems("train", 300, seed=1)
  own = [["11+11", "10+99", budget.gold(row), "11+11", "1"] for row in plain]
  found = budget.rows("train", 300, 1, own)
  assert [dict(prices=x["prices"], total=x["total"]) for x in found] == plain
  mine = other = 0
  for row in found:
    tries = re.findall(r"Try: (.*?)=", texts(row))[:-1]
    assert not any(solves(row, x) for x in tries)
    here = sum(x in ("11+11", "10+99", "1") for x in tries)
    assert here <= (len(tries) + 1) // 2
    assert len(set(tries)) == len(tries)
    mine, other = mine + here, other + len(tries) - here
  assert 0.35 < mine / (mine + other) < 0.65


@hypothesis.settings(max_examples=300, deadline=None, derandomize=True, database=None)
@hypothesis.given(
  st.one_of(
    st.text(max_size=12),
    st.tuples(*[st.sampled_from([*ROW["prices"], 0, 7, 49, 91, 999])] * 2).map(
      lambda x: f"{x[0]}+{x[1]}"
    ),
    st.sampled_from(
      ["34+57", "57+34", " 34+57 ", "34+57+0", "034+57", "٣٤+57", "91+0"]
    ),
  )
)
def test_scores_and_checks_against_brute_force(answer):
  answer = answer.split("=")[0]
  want = solves(ROW, answer)
  # int() would take other spellings of a number; zeros in front change no value.
  same = re.fullmatch(r"0*(\d+)\+0*(\d+)", answer.strip(), re.ASCII)
  if same and len(answer) <= 7:
    want = solves(ROW, "+".join(same.groups()))
  assert task.score(answer, ROW) == {"strict": want}
  assert task.score(f"{answer}=1/2 no", ROW) == {"strict": want}
  if not answer.strip().startswith("0"):
    assert ROLES.verdict(budget.check(ROW, answer)) == want


def test_checks_say_what_is_wrong():
  assert budget.check(ROW, "34+57") == "91/91 yes"
  assert budget.check(ROW, "57+34") == "91/91 yes"
  assert budget.check(ROW, "34+45") == "79/91 no"
  assert budget.check(ROW, "34+47") == "47? no"
  assert budget.check(ROW, "50+41") == "50? no", "its sum is right"
  assert budget.check(dict(ROW, total=68), "34+34") == "68/68 no", "one price twice"
  assert budget.check(ROW, "34+") == "? no"


def test_answers_are_voted_on_whatever_their_order():
  assert task.answer(" 57+34=91/91 yes") == task.answer("34+57") == "34+57"
  assert task.answer("34+57+1") == task.answer("") == task.INVALID
  assert task.gold(ROW) == "34+57"


def test_wrong_tries_are_pairs_of_prices_and_mostly_near():
  rng = random.Random(0)
  found = [budget.wrong(rng, ROW) for _ in range(500)]
  assert not any(solves(ROW, x) for x in found)
  sums = [sum(map(int, x.split("+"))) for x in found]
  near = [abs(x - 91) <= 5 or (x - 91) % 10 == 0 for x in sums]
  assert 0.65 < np.mean(near) < 0.9
  assert len(set(found)) == 27


# ---- roles -----------------------------------------------------------------------


def test_prompts_of_the_roles_are_starts_of_training_transcripts(tok):
  """Token for token, and what is generated there is exactly what is learned there."""
  rows = budget.rows("train", 60, seed=5)
  examples = encode.encode(rows, tok, 400, "completion").examples
  asked = 0
  for row, example in zip(rows, examples, strict=True):
    tokens, learned = example.tokens.tolist(), example.supervised.tolist()
    history, lines = [], texts(row).split("Try:")[1:]
    for number, line in enumerate(lines):
      answer, check = line.split("=")
      last = number == len(lines) - 1
      prompts = {
        "correct": (ROLES.correct(row, history), f"{answer}="),
        "verify": (ROLES.verify(row, history, ROLES.answer(answer)), check),
      }
      if not history:
        assert ROLES.sample(row) == prompts["correct"][0]
      for role, (prompt, reply) in prompts.items():
        ids, new = tok.encode(prompt, bos=True), tok.encode(reply)
        assert tokens[: len(ids)] == ids
        assert tokens[len(ids) : len(ids) + len(new)] == new
        assert set(learned[len(ids) : len(ids) + len(new)]) == {
          role == "verify" or last
        }
        assert len(new) <= ROLES.limit[role]
        asked += 1
      stop = check.removesuffix("\n")
      assert ROLES.verdict(stop) == last
      history.append((ROLES.answer(answer), stop))
    assert tokens[-1] == tok.eos_ids[0]
    assert learned[-1]
  assert asked > 200


def test_roles_read_what_was_generated():
  assert ROLES.answer(" 34+57=91/91 yes") == ROLES.answer(" 34+57") == "34+57"
  assert ROLES.verdict("91/91 yes")
  assert not ROLES.verdict("79/91 no\nTry: 1+1=2/2 yes"), "only its first line counts"
  assert not ROLES.verdict("")
  assert set(ROLES.stop) == set(ROLES.limit) == {"sample", "verify", "correct"}


def test_shots_are_solved_problems_without_wrong_tries():
  text = task.prompt(ROW, [dict(prices=[1, 2, 3], total=5)])
  assert text == (
    "Q: 5 of 1 2 3\nTry: 2+3=5/5 yes\nQ: 91 of 34 12 57 45 31 22 18 40\nTry:"
  )


@pytest.mark.parametrize(
  ("row", "message"),
  [
    (dict(question="a", answer="b"), "needs rows with `prices`"),
    (dict(prices=[1, "2"], total=3), "needs rows with `prices`"),
    (dict(prices=[1, True], total=2), "needs rows with `prices`"),
    (dict(prices=[1, 2], total=10**40), "needs rows with `prices`"),
    (dict(prices=[1, 1], total=2), "no two different numbers"),
    (dict(prices=[1, 2], total=4), "no two different numbers"),
    (dict(prices=[], total=4), "no two different numbers"),
  ],
)
def test_rows_that_are_no_problem_are_bad_input(row, message):
  for ask in (task.gold, task.prompt):
    with pytest.raises(jaxpeft.InputError, match=message) as e:
      ask(row)
    assert "\n" not in str(e.value)


def test_the_config_trains_on_whole_transcripts(tok):
  config = config_file.load(str(ROOT / "configs/sets_toy.py"), [])
  assert tasks.make(config.eval.task, config.eval) is task
  rows = budget.rows("train", 500, seed=0)  # the first ones of `config.data.train`
  found = objectives.from_config(config).encode(
    rows, tok, config.data.max_tokens, "budget"
  )
  assert (found.truncated, found.dropped) == (0, 0)
  assert found.counts.longest > config.data.max_tokens - 20, "the longest just fit"
  example = found.examples[0]
  learned = tok.decode(example.tokens[example.supervised], skip_special=False)
  want = "".join(x["text"] for x in rows[0]["segments"] if x["learn"])
  assert learned == want + "<eos>"
