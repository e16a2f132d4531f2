"""Rows of the tasks about prices: `budget` and `prices`."""

from collections.abc import Callable

from jaxpeft.errors import InputError


def check(row: dict, task: str, gold: Callable[[dict], str]):
  """Raises InputError unless a row is a problem with a solution.

  Args:
    row: has `prices`, a list of whole numbers, and `total`.
    task: its name, for messages.
    gold: gives the solution of a row; "" is none.
  """
  prices, total = row.get("prices"), row.get("total")
  numbers = [*prices, total] if isinstance(prices, list) else [None]
  if not all(type(x) is int and 0 <= x < 1000 for x in numbers):
    raise InputError(
      f"task {task} needs rows with `prices`, a list of whole numbers below 1000, and "
      f"`total`, one such number; this row has {sorted(map(str, row))[:8]}"
    )
  if not gold(row):
    raise InputError(
      f"task {task}: no two different numbers of `prices` make `total` {total}"
    )
