"""The problem `prices`: which two of three prices make the total? The answer says it.

  Q: 54 of 38 16 40
  A: 16+38=54               right
  A: 38+40=78               wrong, and the sum that is written out shows it

It is a task for preferences. A model learns from a demonstrator who chooses the right
two prices half of the time, and always adds correctly: a reader who compares the
written sum with the total knows what a right answer is. Were all demonstrations right,
a model could copy the total, and no sum could be trusted. A row is
{"prices": [...], "total": ...} with a prompt and an answer, or a pair of them.
"""

import itertools
import random
import re
import zlib

PRICES, LOW, HIGH = 3, 10, 49  # how many there are, and from where to where
SKILL = 0.5  # chance of the demonstrator to know the right two
NEW = 10  # most tokens of an answer, where a digit is a token: " 16+38=54" and the end
_TEST_SHARE = 8  # one of 8 problems is in the test split
_ANSWER = re.compile(r"(\d{1,3})\+(\d{1,3})(?:=\d{0,4})?", re.ASCII)


def problems(split: str, count: int, seed: int) -> list[dict]:
  """Different problems with one solution each.

  Args:
    split: "train" or "test"; a hash of the problem decides where it is, so that the two
      share none, whatever the seeds.
    count: number of problems; the training split has about 25,000 different ones.
    seed: of the random choices.
  """
  rng, out = random.Random(f"prices-{split}-{seed}"), {}
  while len(out) < count:
    prices = rng.sample(range(LOW, HIGH + 1), PRICES)
    total = sum(rng.sample(prices, 2))
    row, own = dict(prices=prices, total=total), (sorted(prices), total)
    if len(_solutions(row)) == 1 and _split(own) == split:
      out.setdefault(repr(own), row)
  return list(out.values())


def demonstrated(found: list[dict], seed: int) -> list[dict]:
  """Problems with a prompt and the demonstrator's answer, as `completion`."""
  rng = random.Random(f"prices-demonstrator-{seed}")
  return [row | dict(prompt=prompt(row), completion=_demo(rng, row)) for row in found]


def pairs(found: list[dict], seed: int) -> list[dict]:
  """Problems with a right and a wrong answer of the demonstrator: chosen, rejected."""
  rng, out = random.Random(f"prices-pairs-{seed}"), []
  for row in found:
    made: dict[bool, str] = {}
    while len(made) < 2:
      text = _demo(rng, row)
      made.setdefault(right(row, text), text)
    out.append(row | dict(prompt=prompt(row), chosen=made[True], rejected=made[False]))
  return out


def rows(name: str, split: str) -> list[dict]:
  """The embedded data sets: "prices" has demonstrations, "prices_pairs" has pairs.

  No problem is in both.
  """
  demos, some = dict(train=(12_000, 5_000), test=(1_000, 500))[split]
  found = problems(split, demos + some, seed=0)
  if name == "prices":
    return demonstrated(found[:demos], seed=0)
  return pairs(found[demos:], seed=0)


def prompt(row: dict) -> str:
  """The text of a problem, up to its answer."""
  return f"Q: {row['total']} of {' '.join(map(str, row['prices']))}\nA:"


def written(a: int, b: int) -> str:
  """The answer that chooses these two prices, with their sum."""
  return f" {a}+{b}={a + b}"


def gold(row: dict) -> str:
  """The right pair, smaller number first; "" if no two prices make the total."""
  return next(iter(_solutions(row)), "")


def value(text: str) -> str | None:
  """The pair that an answer names, smaller number first; None if it is no answer.

  The written sum is not read: it is the working of an answer.
  """
  found = _ANSWER.fullmatch(text.strip())
  return found and "{}+{}".format(*sorted(map(int, found.groups())))


def right(row: dict, text: str) -> bool:
  """Whether an answer names the two prices that make the total."""
  found = value(text)
  return found is not None and found == gold(row)


def _demo(rng: random.Random, row: dict) -> str:
  """The demonstrator's answer: the right two with chance SKILL, else any two."""
  knows = rng.random() < SKILL
  pool = [int(x) for x in gold(row).split("+")] if knows else row["prices"]
  return written(*rng.sample(pool, 2))


def _solutions(row: dict) -> list[str]:
  """Every pair of different prices that makes the total, smaller number first."""
  twos = itertools.combinations(sorted(row["prices"]), 2)
  return [f"{a}+{b}" for a, b in twos if a != b and a + b == row["total"]]


def _split(key: tuple) -> str:
  return "test" if zlib.crc32(repr(key).encode()) % _TEST_SHARE == 0 else "train"
