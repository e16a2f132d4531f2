"""Approach 2: for each budget, the size at the bottom of a parabola; then a line.

A budget's parabola is that of ln L against ln N. It goes through the models within a
factor of 6 of the best measured size, or through the 5 nearest if these are fewer. A
budget is left out if its best model is its smallest or largest, or if its parabola has
no minimum between its models. Sources: Hoffmann et al. 2022, section 3.2; Porian et al.
2024, who also work in logarithms and leave such budgets out.
"""

import dataclasses

import numpy as np

from jaxpeft import console
from jaxpeft.errors import InputError
from jaxpeft.scaling import frontier
from jaxpeft.scaling.frontier import Frontier
from jaxpeft.scaling.points import Points

WITHIN = 6.0  # how many times the best size is still on the parabola
NEAREST = 5
LEAST = 3  # budgets, and sizes of a budget
_SAME, _EXACT = 1.1, 1.001  # ratios of budgets that count as one


@dataclasses.dataclass(frozen=True, eq=False)
class Parabola:
  """ln L = curve[0] x^2 + curve[1] x + curve[2], where x = ln N - middle.

  budget: FLOPs.
  n, d, loss: float64[M], the models of the budget, by N.
  used: bool[M], which the parabola goes through.
  curve: float64[3], or None if the best model is at an end.
  middle: ln of the best measured N.
  best: (N, D, L) at the bottom, or None; `why` then says why.
  """

  budget: float
  n: np.ndarray
  d: np.ndarray
  loss: np.ndarray
  used: np.ndarray
  curve: np.ndarray | None
  middle: float
  best: tuple[float, float, float] | None
  why: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class IsoFlop:
  """The parabolas of all budgets, and the frontier of their bottoms."""

  parabolas: tuple[Parabola, ...]
  frontier: Frontier


def fit(points: Points, budgets=(), within: float = WITHIN) -> IsoFlop:
  """Approach 2.

  Args:
    points: the models.
    budgets: FLOPs; by default those that the points have, see `groups`.
    within: how many times larger or smaller than the best size a model may be.
  Raises:
    InputError: fewer than 3 budgets have a parabola with a bottom.
  """
  with console.waiting("looking for budgets"):
    found = tuple(
      parabola(c, rows.n, rows.d, rows.loss, within)
      for c, rows in groups(points, budgets)
    )
  good = [p for p in found if p.best]
  if len(good) < LEAST:
    raise InputError(
      f"approach 2 needs at least {LEAST} budgets with a best size between smaller and "
      f"larger ones, but {len(good)} of {len(found)} have one"
      + next((f" (at {p.budget:.3g} FLOPs, {p.why})" for p in found if p.why), "")
      + "; add sizes, or name a column of budgets by --columns=budget=NAME"
    )
  c = np.array([p.budget for p in good])
  n, d, loss = (np.array([p.best[i] for p in good]) for i in range(3))  # pyright: ignore
  how = f"bottoms of {len(good)} parabolas of {len(found)} budgets"
  return IsoFlop(found, frontier.make(c, n, d, loss, how))


def parabola(budget: float, n, d, loss, within: float = WITHIN) -> Parabola:
  """The parabola of one budget, through models float64[M]."""
  order = np.argsort(n, kind="stable")
  n, d, loss = n[order], d[order], loss[order]
  x, y = np.log(n), np.log(loss)
  best = int(y.argmin())
  away = np.abs(x - x[best])
  used = away <= np.log(within)
  if used.sum() < NEAREST:
    used = np.zeros(len(n), bool)
    used[np.argsort(away, kind="stable")[:NEAREST]] = True
  given = budget, n, d, loss, used
  if x[best] in (x[0], x[-1]):
    end = "smallest" if x[best] == x[0] else "largest"
    return Parabola(*given, None, x[best], None, f"the {end} model is the best")
  curve = np.polyfit(x[used] - x[best], y[used], 2)
  bottom = -curve[1] / (2 * curve[0]) + x[best] if curve[0] > 0 else np.inf
  if not x[0] <= bottom <= x[-1]:
    why = "the parabola has no bottom among the models"
    return Parabola(*given, curve, x[best], None, why)
  # Where d * n is not the same for all, as under other counts of FLOPs.
  tokens = float(np.exp(np.interp(bottom, x, np.log(d))))
  low = float(np.exp(curve[2] - curve[1] ** 2 / (4 * curve[0])))
  return Parabola(*given, curve, x[best], (float(np.exp(bottom)), tokens, low))


def groups(points: Points, budgets=()) -> list[tuple[float, Points]]:
  """(budget, its models) by budget, at least 3 sizes each.

  They are those of the column of budgets; or those whose C is within 10 % of the
  `budgets`; or FLOPs that at least 5 sizes share within 0.1 %; or, where points are
  training curves, 8 budgets that at least 4 curves reach, between the curves' points;
  or FLOPs that at least 5 sizes share within 10 %.
  """
  if len(budgets):
    near = np.abs(np.log(points.c[:, None] / np.asarray(budgets))) < np.log(_SAME)
    found = [(c, points.take(rows)) for c, rows in zip(budgets, near.T, strict=True)]
  elif points.budget is not None:
    values = np.unique(points.budget)
    found = [(float(c), points.take(points.budget == c)) for c in values]
  else:
    found = _shared(points, _EXACT)
    if len(found) < LEAST:
      found = _between(points) if points.curves() else _shared(points, _SAME)
  return [(c, p) for c, p in found if len(np.unique(p.n)) >= LEAST]


def _shared(points: Points, ratio: float) -> list[tuple[float, Points]]:
  """Budgets that many sizes share within a ratio: the fullest window first."""
  order = np.argsort(points.c, kind="stable")
  x, width, found = np.log(points.c[order]), 2 * np.log(ratio), []
  free = np.ones(len(x), bool)
  while free.any():
    rows = np.flatnonzero(free)
    ends = np.searchsorted(x[rows], x[rows] + width, "right")
    start = int((ends - np.arange(len(rows))).argmax())
    window = rows[start : ends[start]]
    chosen = points.take(order[window])
    if len(np.unique(chosen.n)) < NEAREST:
      break
    found.append((float(np.exp(np.median(x[window]))), chosen))
    free[window] = False
  return sorted(found, key=lambda pair: pair[0])


def _between(points: Points, count: int = 8) -> list[tuple[float, Points]]:
  """Curves' losses at budgets between their points."""
  curves = [points.take(rows) for rows in points.rows_of_runs()]
  curves = [p.take(np.argsort(p.c, kind="stable")) for p in curves if len(p) > 1]
  grid = np.geomspace(points.c.min(), points.c.max(), 200)
  reach = np.array([(grid >= p.c[0]) & (grid <= p.c[-1]) for p in curves])
  enough = np.flatnonzero(reach.sum(0) >= 4) if len(curves) else np.array([])
  if not len(enough):
    return []
  found = []
  for c in np.geomspace(grid[enough[0]], grid[enough[-1]], count):
    rows = []
    for curve in curves:
      if curve.c[0] <= c <= curve.c[-1]:
        at = [
          np.exp(np.interp(np.log(c), np.log(curve.c), np.log(v)))
          for v in (curve.n, curve.d, curve.loss)
        ]
        rows.append(at)
    if rows:
      n, d, loss = np.array(rows).T
      ids = np.arange(len(n)).astype(str)
      found.append((float(c), Points(n, d, loss, np.full(len(n), c), ids)))
  return found


def bootstrap(of: IsoFlop, samples: int, seed: int = 0) -> np.ndarray:
  """float64[samples, 2]: a and b, with the parabolas' residuals drawn with replacement.

  Residuals of all budgets are drawn together. They are enlarged first, because a fit of
  three coefficients makes the residuals of a parabola too small.
  """
  rng = np.random.default_rng(seed)
  good = [p for p in of.parabolas if p.best]
  parts, pool = [], []
  for p in good:
    x, y = np.log(p.n[p.used]) - p.middle, np.log(p.loss[p.used])
    design = np.vander(x, 3)
    fitted = np.polyval(p.curve, x)  # pyright: ignore
    free = len(x) - 3
    if free > 0:
      pool.append((y - fitted) * np.sqrt(len(x) / free))
    parts.append((p, fitted, np.linalg.pinv(design)))
  drawn_from = np.concatenate(pool) if pool else np.zeros(1)
  n = np.full((samples, len(good)), np.nan)
  d = n.copy()
  for i, (p, fitted, inverse) in enumerate(parts):
    y = fitted + rng.choice(drawn_from, (samples, len(fitted)))
    curve = y @ inverse.T
    bottom = np.where(curve[:, 0] > 0, -curve[:, 1] / (2 * curve[:, 0]), np.inf)
    bottom = bottom + p.middle
    at = np.log(p.n)
    fine = (bottom >= at[0]) & (bottom <= at[-1])
    n[fine, i] = bottom[fine]
    d[fine, i] = np.interp(bottom[fine], at, np.log(p.d))
  c = np.log([p.budget for p in good])
  found = []
  for row_n, row_d in zip(n, d, strict=True):
    fine = ~np.isnan(row_n)
    if fine.sum() >= LEAST:
      found.append([np.polyfit(c[fine], z[fine], 1)[0] for z in (row_n, row_d)])
  return np.asarray(found).reshape(-1, 2)
