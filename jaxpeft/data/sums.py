"""The problem `sums`, whose check is as hard as its solution; see `data.tries`.

What are two steps of an addition or a subtraction? A try writes both steps down. Its
check says only yes or no, and for that both have to be done again, without writing. A
check that wrote them down would be a second solution, from which the next try copies. A
row is {"terms": [31, 25, -7]}.
"""

import random
import re

MARK, MOST = ":", 2
LIMITS = 20, 5  # tokens of "99+-98=100-98=100:" and of its check, and a few more
_LIMIT = 99  # the largest result of a step
_STEPS = re.compile(r"\d{1,3}[+-]\d{1,3}=\d{1,3}[+-]\d{1,3}=(\d{1,3})", re.ASCII)


def draw(rng: random.Random) -> dict:
  """A problem whose results are from 1 to 99."""
  while True:
    terms = [rng.randint(2, _LIMIT)]
    terms += [rng.choice((-1, 1)) * rng.randint(2, _LIMIT - 1) for _ in range(2)]
    if all(1 <= x <= _LIMIT for x in results(dict(terms=terms))):
      return dict(terms=terms)


def key(row: dict) -> tuple:
  """The numbers in their order."""
  return tuple(row["terms"])


def results(row: dict) -> tuple[int, int]:
  """The results of both steps."""
  a, b, c = row["terms"]
  return a + b, a + b + c


def head(row: dict) -> str:
  """The text of a problem."""
  a, b, c = row["terms"]
  return f"Q: {a}{b:+d}{c:+d}\n"


def gold(row: dict) -> str:
  """Both steps with their results."""
  return _steps(row, *results(row))


def value(answer: str) -> str | None:
  """The second result, which is the answer; None if there are not two steps."""
  found = _STEPS.fullmatch(answer.strip())
  return found and str(int(found[1]))


def right(row: dict, answer: str) -> bool:
  """Whether the second result is right."""
  return value(answer) == str(results(row)[1])


def check(row: dict, answer: str) -> str:
  """The verdict."""
  return "yes" if right(row, answer) else "no"


def wrong(rng: random.Random, row: dict) -> str:
  """Steps with a slip in the first result, which goes on, or in the second."""
  a, b = results(row)
  while True:
    slip = rng.choice((-10, -2, -1, 1, 2, 10))
    first = slip if rng.random() < 0.5 else 0
    if a + first > 0 and b + slip > 0:
      return _steps(row, a + first, b + slip)


def _steps(row: dict, first: int, second: int) -> str:
  a, b, c = row["terms"]
  return f"{a}{b:+d}={first}{c:+d}={second}"
