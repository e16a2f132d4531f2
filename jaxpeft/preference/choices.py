"""What was observed, with counts: rankings of two or more items, and ties.

Items are numbers from 0, or names; names are numbered in alphabetical order, or in the
order of `items` where that lists them. Equal observations are stored once, with their
count.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxpeft.errors import InputError, unknown

_ITEMS, _PLACES = 1_000_000, 50_000_000  # limits, so that memory stays bounded


@dataclasses.dataclass(frozen=True, eq=False)
class Choices:
  """Observed choices; made by `pairs`, `matrix` and `rankings`.

  ranked: int[N, K], items of distinct rankings, best first; -1 behind the last one.
  counts: float64[N], how often each ranking was observed.
  tied: int[M, 2], distinct pairs between which nothing was chosen; the smaller first.
  tie_counts: float64[M].
  items: the number of items.
  names: a name for each item in messages.
  """

  ranked: np.ndarray
  counts: np.ndarray
  tied: np.ndarray
  tie_counts: np.ndarray
  items: int
  names: tuple[str, ...] = ()

  def name(self, item: int) -> str:
    """An item as messages show it."""
    return repr(self.names[item]) if self.names else str(item)


def pairs(won, counts=None, ties=(), tie_counts=None, items=None) -> Choices:
  """Choices between two.

  Args:
    won: [n, 2], (winner, loser) in each row, as numbers or as names.
    counts: [n], how often each row was observed; by default once.
    ties: [m, 2], pairs of which neither won.
    tie_counts: [m], as `counts`.
    items: the number of items, or their names in order; by default those of the rows.

  Raises:
    InputError: an item, a row or a count is not valid.
  """
  won, ties = list(won), list(ties)
  for what, rows in (("pairs", won), ("ties", ties)):
    for at, row in enumerate(rows):
      if np.ndim(row) != 1 or len(row) != 2:
        raise InputError(f"row {at} of {what} is {row!r}, not two items")
  (won, ties), names, items = _numbered([won, ties], items)
  return made(won, counts, ties, tie_counts, names, items)


def matrix(wins, ties=None, names=None) -> Choices:
  """Choices between two from tables of counts.

  Args:
    wins: [I, I], how often the item of the row won over the item of the column.
    ties: [I, I], how often neither did. Only what stands above the diagonal counts,
      and it must equal what stands below, or that must be 0.
    names: the items' names, in order.

  Raises:
    InputError: a table is not square, or its diagonal or a count is not valid.
  """
  wins = _table("wins", wins)
  ties = np.zeros_like(wins) if ties is None else _table("ties", ties)
  if ties.shape != wins.shape:
    raise InputError(f"wins are {wins.shape}, but ties are {ties.shape}")
  upper, lower = np.triu(ties), np.tril(ties)
  if lower.any() and not np.array_equal(upper, lower.T):
    raise InputError("ties[i, j] differs from ties[j, i]; fill the upper triangle only")
  (won, tied), items = (np.argwhere(x != 0) for x in (wins, upper)), len(wins)
  if names is not None and len(names) != items:
    raise InputError(f"{len(names)} names for {items} items")
  return made(
    won, wins[tuple(won.T)], tied, upper[tuple(tied.T)], tuple(names or ()), items
  )


def rankings(rows, counts=None, items=None) -> Choices:
  """Choices among several, in order.

  Args:
    rows: each lists two or more items, best first; they may be of different lengths and
      need not hold every item. An item that is left out is not ranked last.
    counts, items: as in `pairs`.

  Raises:
    InputError: an item, a row or a count is not valid.
  """
  rows = list(rows)
  for at, row in enumerate(rows):
    if np.ndim(row) != 1 or len(row) < 2:
      raise InputError(f"row {at} is {row!r}, not a ranking of two or more items")
  (rows,), names, items = _numbered([rows], items)
  return made(rows, counts, [], None, names, items)


def _table(what, table) -> np.ndarray:
  table = np.asarray(table, np.float64)
  if table.ndim != 2 or table.shape[0] != table.shape[1]:
    raise InputError(f"{what} have the shape {table.shape}, not one row per column")
  if np.diag(table).any():
    at = int(np.flatnonzero(np.diag(table))[0])
    raise InputError(f"{what}[{at}, {at}] is not 0: an item does not meet itself")
  return table


def _numbered(groups, items):
  """(the groups' rows with numbers for items, names, the number of items)."""
  flat = [item for rows in groups for row in rows for item in row]
  names = None
  if not (items is None or isinstance(items, int | np.integer)):
    names, items = tuple(items), None
  elif any(isinstance(item, str) for item in flat):
    names = tuple(sorted({str(item) for item in flat}))
  if names is not None:
    number = {name: at for at, name in enumerate(names)}
    for item in flat:
      if not isinstance(item, str):
        raise InputError(f"item {item!r} is not a name, but others are")
      if item not in number:
        raise unknown("item", item, names)
    if len(number) != len(names):
      raise InputError("`items` has a name twice")
    if items not in (None, len(names)):
      raise InputError(f"items is {items}, but the rows name {len(names)} items")
    groups = [[[number[item] for item in row] for row in rows] for rows in groups]
    return groups, names, len(names)
  for item in flat:
    if not isinstance(item, int | np.integer) or isinstance(item, bool) or item < 0:
      raise InputError(f"item {item!r} is neither a number from 0 nor a name")
  most = max(flat, default=-1) + 1
  count = most if items is None else int(items)
  if most > count:
    raise InputError(f"item {most - 1} of the rows needs items >= {most}, not {items}")
  return groups, (), count


def made(rows, counts, ties, tie_counts, names, items: int) -> Choices:
  """Checked choices of rows of numbers, equal rows joined; arguments as above."""
  if items < 2:
    raise InputError(f"choices need two items or more, not {items}")
  if items > _ITEMS:
    raise InputError(f"{items:,} items are more than {_ITEMS:,}; number them densely")
  longest = max((len(row) for row in rows), default=2)
  if longest * len(rows) > _PLACES:
    raise InputError(
      f"{len(rows):,} rankings of up to {longest:,} items are too many; shorten them"
    )
  ranked = np.full((len(rows), longest), -1, np.int64)
  if isinstance(rows, np.ndarray):
    ranked[:] = rows
  else:
    for at, row in enumerate(rows):
      ranked[at, : len(row)] = row
  tied = np.sort(np.asarray(ties, np.int64).reshape(-1, 2), axis=1)
  for what, table in (("row", ranked), ("tie", tied)):
    ordered = np.sort(table, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if twice.any():
      at = int(np.flatnonzero(twice.any(1))[0])
      raise InputError(f"{what} {at} has an item twice: {[*map(int, table[at])]}")
  ranked, counts = _joined(ranked, counts)
  tied, tie_counts = _joined(tied, tie_counts)
  if not len(ranked) + len(tied):
    raise InputError("there are no choices")
  return Choices(ranked, counts, tied, tie_counts, items, tuple(map(str, names)))


def _joined(rows: np.ndarray, counts: Sequence | np.ndarray | None):
  """(distinct rows, how often each occurs); rows that never occur are dropped."""
  counts = np.ones(len(rows)) if counts is None else np.asarray(counts, np.float64)
  if counts.shape != (len(rows),):
    raise InputError(f"{counts.size} counts for {len(rows)} rows")
  if not (np.isfinite(counts) & (counts >= 0)).all():
    at = int(np.flatnonzero(~(np.isfinite(counts) & (counts >= 0)))[0])
    raise InputError(f"count {counts[at]} of row {at} is not a number from 0")
  rows, counts = rows[counts > 0], counts[counts > 0]
  distinct, which = np.unique(rows, axis=0, return_inverse=True)
  return distinct, np.bincount(which.reshape(-1), counts, len(distinct))
