"""Sums: two steps of addition or subtraction. Checking it is as hard as solving it.

A row of `embedded:sums/test` has `terms`, three numbers; an answer is both steps,
"31+25=56-7=49", of which the last number counts.
"""

from collections.abc import Sequence

from jaxpeft.data import sums
from jaxpeft.errors import InputError
from jaxpeft.evaluation.tasks import tries

RULES = tries.RULES


def make(options, rows: Sequence[dict] = ()) -> tries.Tries:
  """The task; it has no options and needs no labels."""
  return tries.Tries(sums, check)


def check(row: dict):
  """Raises InputError unless a row is such a problem."""
  terms = row.get("terms")
  numbers = terms if isinstance(terms, list) and len(terms) == 3 else [None]
  if not all(type(x) is int and abs(x) < 1000 for x in numbers):
    raise InputError(
      "task sums needs rows with `terms`, a list of three whole numbers; this row has "
      f"{sorted(map(str, row))[:8]}"
    )
  if not all(0 <= x < 1000 for x in sums.results(row)):
    raise InputError(
      f"task sums: a result of `terms` {terms} is not from 0 to 999, as it must be"
    )
