"""Budget: which two prices make the budget? Checking it is easier than solving it.

A row of `embedded:budget/test` has `prices` and `total`; an answer is a pair, "34+57",
in any order.
"""

from collections.abc import Sequence

from jaxpeft.data import budget
from jaxpeft.errors import InputError
from jaxpeft.evaluation.tasks import tries

RULES = tries.RULES


def make(options, rows: Sequence[dict] = ()) -> tries.Tries:
  """The task; it has no options and needs no labels."""
  return tries.Tries(budget, check)


def check(row: dict):
  """Raises InputError unless a row is such a problem, with a solution."""
  prices, total = row.get("prices"), row.get("total")
  numbers = [*prices, total] if isinstance(prices, list) else [None]
  if not all(type(x) is int and 0 <= x < 1000 for x in numbers):
    raise InputError(
      "task budget needs rows with `prices`, a list of whole numbers below 1000, and "
      f"`total`, one such number; this row has {sorted(map(str, row))[:8]}"
    )
  if not budget.gold(row):
    raise InputError(
      f"task budget: no two different numbers of `prices` make `total` {total}"
    )
