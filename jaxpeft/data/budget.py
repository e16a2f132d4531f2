"""The problem `budget`, whose check is far easier than its solution; see `data.tries`.

Which two of eight prices make exactly the budget? One pair does. To find it takes a
search, to check it takes one addition. A row is {"prices": [...], "total": ...}.
"""

import itertools
import random
import re

MARK, MOST = "=", 8
LIMITS = 8, 12  # tokens of " 34+45=" and of "79/91 no\n", and a few more
PRICES, LOW, HIGH = 8, 10, 49  # how many there are, and from where to where
_NEAR = 0.7  # share of wrong tries whose sum is nearly right
_PAIR = re.compile(r"(\d{1,3})\+(\d{1,3})", re.ASCII)


def draw(rng: random.Random) -> dict:
  """A problem with one solution."""
  while True:
    prices = rng.sample(range(LOW, HIGH + 1), PRICES)
    total = sum(rng.sample(prices, 2))
    sums = [sum(x) for x in itertools.combinations(prices, 2)]
    if sums.count(total) == 1:
      return dict(prices=prices, total=total)


def key(row: dict) -> tuple:
  """The prices in any order, and the budget."""
  return sorted(row["prices"]), row["total"]


def head(row: dict) -> str:
  """The text of a problem."""
  return f"Q: {row['total']} of {' '.join(map(str, row['prices']))}\n"


def gold(row: dict) -> str:
  """The right pair, in the order of the prices; "" if no pair makes the budget."""
  pairs = itertools.combinations(row["prices"], 2)
  found = (f"{a}+{b}" for a, b in pairs if a != b and a + b == row["total"])
  return next(found, "")


def value(answer: str) -> str | None:
  """The pair with its smaller number first; None if it is no pair."""
  found = _pair(answer)
  return found and "{}+{}".format(*sorted(found))


def right(row: dict, answer: str) -> bool:
  """Whether it names two different prices that make the budget."""
  found = _pair(answer)
  if found is None:
    return False
  return (
    found[0] != found[1]
    and set(found) <= set(row["prices"])
    and sum(found) == row["total"]
  )


def check(row: dict, answer: str) -> str:
  """The sum of a pair, the budget, and the verdict.

  A number that is no price is named instead of the sum: "47? no".
  """
  found = _pair(answer)
  if found is None:
    return "? no"
  for number in found:
    if number not in row["prices"]:
      return f"{number}? no"
  verdict = "yes" if right(row, answer) else "no"
  return f"{sum(found)}/{row['total']} {verdict}"


def wrong(rng: random.Random, row: dict) -> str:
  """A pair of prices that does not make the budget; most are nearly right."""
  total = row["total"]
  pairs = [x for x in itertools.combinations(row["prices"], 2) if sum(x) != total]
  near = [x for x in pairs if (sum(x) - total) % 10 == 0 or abs(sum(x) - total) <= 5]
  a, b = rng.choice(near if near and rng.random() < _NEAR else pairs)
  return f"{a}+{b}"


def _pair(answer: str) -> tuple[int, int] | None:
  found = _PAIR.fullmatch(answer.strip())
  return (int(found[1]), int(found[2])) if found else None
