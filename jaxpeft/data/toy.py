"""Generates the embedded task: seeded word problems in GSM8K's format.

A one-step problem is one addition or subtraction, among irrelevant sentences. A
two-step problem is a chain of two, and its answer shows both. Sums are the same without
a story. A hash of its numbers decides whether a problem is in the training or the test
split, so no seed ever trains on the numbers of a test problem.
"""

import random
import zlib

_NAMES = (
  "Anna",
  "Ben",
  "Clara",
  "David",
  "Emma",
  "Felix",
  "Grace",
  "Henry",
  "Iris",
  "Jack",
  "Kate",
  "Leo",
  "Maria",
  "Noah",
  "Olga",
  "Paul",
)
_THINGS = (
  "apples",
  "books",
  "cards",
  "coins",
  "eggs",
  "flowers",
  "marbles",
  "pencils",
  "shells",
  "stamps",
  "stickers",
  "stones",
)
_GAIN = ("buys {} more", "finds {} more", "gets {} more", "wins {} more")
_LOSE = ("gives away {}", "loses {}", "sells {}", "uses {}")
_ASIDE = ("{0} has {1} {2}.", "{0} is {1} years old.", "{0} likes {2}.")
_LIMIT = 99  # the largest number in any problem
_TEST_SHARE = 8  # one of 8 tuples of numbers is in the test split


def problems(steps: int, split: str, count: int, seed: int) -> list[dict[str, str]]:
  """A list of problems {"question", "answer"} with one or two steps.

  Args:
    steps: 1 or 2.
    split: "train" or "test"; the two share no tuple of numbers, whatever the seeds.
    count: number of problems; numbers may repeat, since there are few one-step tuples.
    seed: of the random choices.
  """
  rng = random.Random(f"{steps}-{split}-{seed}")
  rows = []
  while len(rows) < count:
    start, changes = _draw(rng, steps)
    if _split((start, *changes)) == split:
      rows.append(_tell(rng, start, changes))
  return rows


def sums(split: str, count: int, seed: int) -> list[dict[str, str]]:
  """A list of sums {"question", "answer"} with one or two steps and no story.

  Args:
    split: see `problems`.
    count: number of sums.
    seed: of the random choices.
  """
  rng = random.Random(f"sums-{split}-{seed}")
  rows = []
  while len(rows) < count:
    start, changes = _draw(rng, rng.choice((1, 2)))
    if _split((start, *changes)) == split:
      question = f"{start}{''.join(f'{change:+d}' for change in changes)}?"
      rows.append({"question": question, "answer": _work(start, changes, "", "")})
  return rows


def _draw(rng, steps: int):
  """(start, [signed change]); every intermediate result is from 1 to _LIMIT."""
  while True:
    start = rng.randint(2, _LIMIT)
    changes = [rng.choice((-1, 1)) * rng.randint(2, _LIMIT - 1) for _ in range(steps)]
    totals = [start + sum(changes[: i + 1]) for i in range(steps)]
    if all(1 <= total <= _LIMIT for total in totals):
      return start, changes


def _split(numbers) -> str:
  share = zlib.crc32(repr(numbers).encode()) % _TEST_SHARE
  return "test" if share == 0 else "train"


def _tell(rng, start: int, changes: list[int]) -> dict[str, str]:
  """A random story with these numbers, as a problem."""
  name, other = rng.sample(_NAMES, 2)
  things, others = rng.sample(_THINGS, 2)
  story = [f"{name} has {start} {things}."]
  for i, change in enumerate(changes):
    deed = rng.choice(_GAIN if change > 0 else _LOSE).format(abs(change))
    story.append(f"{'Then ' * (i > 0)}{name} {deed}.")
  for _ in range(rng.randint(0, 2) if len(changes) == 1 else 0):
    aside = rng.choice(_ASIDE).format(other, rng.randint(2, _LIMIT), others)
    story.insert(rng.randint(0, len(story)), aside)
  story.append(f"How many {things} does {name} have now?")
  working = _work(start, changes, f"{name} has ", f" {things}")
  return {"question": " ".join(story), "answer": working}


def _work(total: int, changes: list[int], before: str, after: str) -> str:
  """A worked answer: one line for each step, then "#### TOTAL"."""
  lines = []
  for change in changes:
    step, total = f"{total}{change:+d}", total + change
    lines.append(f"{before}{step}=<<{step}={total}>>{total}{after}.")
  return "\n".join([*lines, f"#### {total}"])
