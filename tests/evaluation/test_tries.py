"""The embedded tasks `budget` and `sums`: problems, checks, prompts."""

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
from jaxpeft.data import budget, encode, sources, sums, tokenizer, tries
from jaxpeft.evaluation import tasks

ROOT = pathlib.Path(__file__).parents[2]
ROW = dict(prices=[34, 12, 57, 45, 31, 22, 18, 40], total=91)
TASK, SUMS = tasks.make("budget"), tasks.make("sums")
ROLES = TASK.roles(None)


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
  found = {
    split: tries.problems(budget, split, 400, seed=3) for split in ("train", "test")
  }
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
      assert tries._split(budget.key(row)) == split
  drawn = [budget.draw(random.Random(i)) for i in range(2000)]
  assert (
    0.1 < np.mean([tries._split(budget.key(row)) == "test" for row in drawn]) < 0.15
  )


def test_problems_are_the_same_every_time_and_others_for_another_seed():
  a, b, c = (tries.problems(budget, "test", 20, seed) for seed in (0, 0, 1))
  assert a == b
  assert not [row for row in a if row in c]
  assert tries.rows(budget, "test", 5, 0) == sources.embedded("budget/test")[:5]


def test_transcripts_end_with_the_right_try_and_check_every_try():
  rows = tries.rows(budget, "train", 400, seed=1)
  counts = []
  for row in rows:
    head, *lines = texts(row).split("Try:")
    assert head == f"Q: {row['total']} of {' '.join(map(str, row['prices']))}\n"
    for number, line in enumerate(lines, 1):
      a, b, total, verdict = re.fullmatch(
        r" (\d+)\+(\d+)=\d+/(\d+) (yes|no)\n?", line
      ).groups()
      assert f"={int(a) + int(b)}/{row['total']} " in line
      assert total == str(row["total"])
      assert (verdict == "yes") == solves(row, f"{a}+{b}") == (number == len(lines))
    assert len(set(lines)) == len(lines)
    counts.append(len(lines) - 1)
    assert [x["text"] for x in row["segments"] if not x["learn"]][1::2] == [
      f"{line.split('=')[0]}=" for line in lines[:-1]
    ]
  assert 0.28 < np.mean([count == 0 for count in counts]) < 0.42
  assert max(counts) == budget.MOST == 8


def test_half_of_the_wrong_tries_are_the_solver_s_own():
  plain = tries.problems(budget, "train", 300, seed=1)
  own = [["11+11", "10+99", budget.gold(row), "11+11", "1"] for row in plain]
  found = tries.told(budget, plain, 1, own)
  assert [dict(prices=x["prices"], total=x["total"]) for x in found] == plain
  mine = other = 0
  for row in found:
    lines = re.findall(r"Try: (.*?)=", texts(row))[:-1]
    assert not any(solves(row, x) for x in lines)
    here = sum(x in ("11+11", "10+99", "1") for x in lines)
    assert here <= (len(lines) + 1) // 2
    assert len(set(lines)) == len(lines)
    mine, other = mine + here, other + len(lines) - here
  assert 0.35 < mine / (mine + other) < 0.65
  rng = random.Random(0)  # a solver may give what the generator gives
  own = [[budget.wrong(rng, row) for _ in range(9)] for row in plain]
  for row in tries.told(budget, plain, 1, own):
    lines = re.findall(r"Try: (.*?)=", texts(row))
    assert len(set(lines)) == len(lines)


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
  assert TASK.score(answer, ROW) == {"strict": want}
  assert TASK.score(f"{answer}=1/2 no", ROW) == {"strict": want}
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
  assert TASK.answer(" 57+34=91/91 yes") == TASK.answer("34+57") == "34+57"
  assert TASK.answer("34+57+1") == TASK.answer("") == "[invalid]"
  assert TASK.gold(ROW) == "34+57"


def test_wrong_tries_are_pairs_of_prices_and_mostly_near():
  rng = random.Random(0)
  found = [budget.wrong(rng, ROW) for _ in range(500)]
  assert not any(solves(ROW, x) for x in found)
  sums = [sum(map(int, x.split("+"))) for x in found]
  near = [abs(x - 91) <= 5 or (x - 91) % 10 == 0 for x in sums]
  assert 0.65 < np.mean(near) < 0.9
  assert len(set(found)) == 27


# ---- sums ----------------------------------------------------------------------


def test_sums_are_right_by_evaluation_and_checks_agree():
  rng = random.Random(0)
  for row in tries.problems(sums, "train", 600, seed=2):
    a, b, c = row["terms"]
    assert sums.head(row) == f"Q: {a}{b:+d}{c:+d}\n"
    last = eval(sums.head(row)[3:])
    assert sums.gold(row) == f"{a}{b:+d}={a + b}{c:+d}={last}"
    assert 1 <= a + b <= 99
    assert 1 <= last <= 99
    for answer in (sums.gold(row), *(sums.wrong(rng, row) for _ in range(8))):
      want = answer.rpartition("=")[2] == str(last)
      assert want == (answer == sums.gold(row))
      assert sums.value(answer) is not None, "as a solver could answer"
      assert SUMS.score(f" {answer}:", row) == {"strict": want}
      verdict = "yes" if want else "no"
      assert sums.check(row, answer) == verdict, "it writes no second solution"
  for text in (" 31+25=56-7=49:31+25=56-7=49 yes", "1+1=1-1=049"):
    assert SUMS.answer(text) == "49"
  for text in ("49", "31+25=56", "31+25=56-7=49=1", "", "31+25=56-7="):
    assert SUMS.answer(text) == "[invalid]"


@pytest.mark.parametrize(
  ("row", "message"),
  [
    (ROW, "needs rows with `terms`"),
    (dict(terms=[1, 2]), "needs rows with `terms`"),
    (dict(terms=[1, 2, "3"]), "needs rows with `terms`"),
    (dict(terms=[1, 2, 10**40]), "needs rows with `terms`"),
    (dict(terms=[1, -2, 3]), "not from 0 to 999"),
  ],
)
def test_rows_that_are_no_sum_are_bad_input(row, message):
  for ask in (SUMS.gold, SUMS.prompt):
    with pytest.raises(jaxpeft.InputError, match=message) as e:
      ask(row)
    assert "\n" not in str(e.value)


# ---- roles -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["budget", "sums"])
def test_prompts_of_the_roles_are_starts_of_training_transcripts(tok, name):
  """Token for token, and what is generated there is exactly what is learned there."""
  found = tasks.make(name)
  ROLES, mark = found.roles(None), found.kind.MARK
  rows = sources.embedded(f"{name}/test")[:60]
  examples = encode.encode(rows, tok, 400, "completion").examples
  asked = 0
  for row, example in zip(rows, examples, strict=True):
    tokens, learned = example.tokens.tolist(), example.supervised.tolist()
    history, lines = [], texts(row).split("Try:")[1:]
    for number, line in enumerate(lines):
      answer, check = line.split(mark)
      last = number == len(lines) - 1
      prompts = {
        "correct": (ROLES.correct(row, history), f"{answer}{mark}"),
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
  long = ROLES.correct(ROW, [("34+45", " 79/91 no\nTry: 1+1=")])
  assert long == ROLES.correct(ROW, [("34+45", "79/91 no")])
  assert set(ROLES.stop) == set(ROLES.limit) == {"sample", "verify", "correct"}


def test_shots_are_solved_problems_without_wrong_tries():
  text = TASK.prompt(ROW, [dict(prices=[1, 2, 3], total=5)])
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
@pytest.mark.parametrize("name", ["budget", "prices"])
def test_rows_that_are_no_problem_are_bad_input(name, row, message):
  task = tasks.make(name)
  for ask in (task.gold, task.prompt):
    with pytest.raises(jaxpeft.InputError, match=message) as e:
      ask(row)
    assert "\n" not in str(e.value)


def test_the_config_trains_on_whole_transcripts(tok):
  config = config_file.load(str(ROOT / "configs/sets_toy.py"), [])
  assert tasks.make(config.eval.task, config.eval) == TASK
  rows = tries.rows(
    budget, "train", 500, seed=0
  )  # the first ones of `config.data.train`
  found = objectives.from_config(config).encode(
    rows, tok, config.data.max_tokens, "budget"
  )
  assert (found.truncated, found.dropped) == (0, 0)
  assert found.counts.longest > config.data.max_tokens - 20, "the longest just fit"
  example = found.examples[0]
  learned = tok.decode(example.tokens[example.supervised], skip_special=False)
  want = "".join(x["text"] for x in rows[0]["segments"] if x["learn"])
  assert learned == want + "<eos>"
