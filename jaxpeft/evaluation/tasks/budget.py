"""Budget: which two prices make the budget? Checking it is easier than solving it.

A row of `embedded:budget/test` has `prices` and `total`; an answer is a pair, "34+57",
in any order.
"""

from collections.abc import Sequence

from jaxpeft.data import budget
from jaxpeft.evaluation.tasks import price_rows, tries

RULES = tries.RULES


def make(options, rows: Sequence[dict] = ()) -> tries.Tries:
  """The task; it has no options and needs no labels."""
  return tries.Tries(budget, check)


def check(row: dict):
  """Raises InputError unless a row is such a problem, with a solution."""
  price_rows.check(row, "budget", budget.gold)
