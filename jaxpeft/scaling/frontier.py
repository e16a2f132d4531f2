"""Approach 1: the models that no cheaper model beats, and the power of C they follow.

`hull` takes the corners of the lower convex hull of (ln C, ln L), as the Gemstones do.
`envelope` takes the lowest of all training curves at each of 1,500 budgets, as Hoffmann
et al. do; it needs curves of several points. A line of ln N against ln C through these
models gives N_opt = scale * C^a. A second line does the same for D.

Sources: Hoffmann et al. 2022, section 3.1; McLeish et al. 2025 ("Gemstones"), whose
numbers `hull` gives to 6 decimals.
"""

import dataclasses

import numpy as np

from jaxpeft import console
from jaxpeft.errors import InputError
from jaxpeft.scaling.points import Points

BUDGETS = 1_500
_LEAST = 3  # points of a line


@dataclasses.dataclass(frozen=True)
class Line:
  """y = scale * C^exponent, by least squares in logarithms.

  error: the standard error of the exponent, as if points were independent.
  r2: the share of the variance of ln y that the line explains.
  """

  exponent: float
  log_scale: float
  error: float
  r2: float

  def at(self, c):
    """y at budgets c."""
    return np.exp(self.log_scale + self.exponent * np.log(c))


def line(c: np.ndarray, y: np.ndarray) -> Line:
  """The line through ln y against ln c.

  Raises:
    InputError: there are fewer than 3 different c.
  """
  if len(np.unique(c)) < _LEAST:
    raise InputError(
      f"a power of C needs at least {_LEAST} budgets, but there are "
      f"{len(np.unique(c))}; add points at others"
    )
  x, z = np.log(c), np.log(y)
  x0, z0 = x - x.mean(), z - z.mean()
  slope = (x0 @ z0) / (x0 @ x0)
  left = ((z0 - slope * x0) ** 2).sum()
  error = np.sqrt(left / max(1, len(x) - 2) / (x0 @ x0))
  r2 = 1 - left / max(z0 @ z0, 1e-300)
  return Line(float(slope), float(z.mean() - slope * x.mean()), float(error), float(r2))


@dataclasses.dataclass(frozen=True, eq=False)
class Frontier:
  """What an approach takes for optimal, and the lines through it.

  c, n, d, loss: float64[F], the optimal models, by C.
  n_line, d_line: the best N and D as powers of C; their exponents are a and b.
  how: what was done, in words.
  """

  c: np.ndarray
  n: np.ndarray
  d: np.ndarray
  loss: np.ndarray
  n_line: Line
  d_line: Line
  how: str

  @property
  def a(self) -> float:
    """The exponent of the best N."""
    return self.n_line.exponent

  @property
  def b(self) -> float:
    """The exponent of the best D."""
    return self.d_line.exponent

  def optimum(self, c):
    """(N, D) that the lines give for budgets c."""
    return self.n_line.at(c), self.d_line.at(c)


def make(c, n, d, loss, how: str) -> Frontier:
  """The lines through optimal models, float64[F] each; errors as of `line`."""
  return Frontier(c, n, d, loss, line(c, n), line(c, d), how)


def hull_rows(c: np.ndarray, loss: np.ndarray) -> np.ndarray:
  """Row numbers of the hull's corners, by C, without those that do not lower the loss.

  The hull is that of (ln C, ln L) and of one point far above and to the right, which
  is left out again: so the corners are those seen from below.
  """
  x = np.append(np.log(c), np.log(2 * c.max()))
  y = np.append(np.log(loss), np.log(2 * loss.max()))
  order = np.lexsort((y, x))

  def chain(rows):
    corners: list[int] = []
    for row in rows:
      while len(corners) > 1:
        i, j = corners[-2:]
        turn = (x[j] - x[i]) * (y[row] - y[i]) - (y[j] - y[i]) * (x[row] - x[i])
        if turn > 0:
          break
        corners.pop()
      corners.append(row)
    return corners

  rows = order.tolist()
  corners = np.array(sorted({*chain(rows), *chain(rows[::-1])} - {len(c)}))
  corners = corners[np.lexsort((loss[corners], c[corners]))]
  falls = np.append(True, np.diff(loss[corners]) < 0)
  return corners[falls]


def hull(points: Points) -> Frontier:
  """Approach 1 by the convex hull; raises InputError if it has fewer than 3 corners."""
  rows = hull_rows(points.c, points.loss)
  if len(rows) < _LEAST:
    raise InputError(
      f"the hull of loss against FLOPs has {len(rows)} corners; a line needs {_LEAST}: "
      "add cheaper and more expensive models"
    )
  return make(
    points.c[rows], points.n[rows], points.d[rows], points.loss[rows],
    f"corners of the hull of {len(points)} points",
  )  # fmt: skip


def envelope(points: Points, budgets: int = BUDGETS) -> Frontier:
  """Approach 1 by the lowest training curve at each budget that two curves reach.

  Between its points a curve is a line in ln L against ln C.

  Raises:
    InputError: fewer than two curves of several points overlap.
  """
  c = np.geomspace(points.c.min(), points.c.max(), budgets)
  rows = [own for own in points.rows_of_runs() if len(own) > 1]
  names = [points.run[own[0]] for own in rows]
  losses, sizes, tokens = (np.full((len(names), budgets), np.nan) for _ in range(3))
  for i, own in enumerate(rows):
    curve = points.take(own)
    curve = curve.take(np.argsort(curve.c, kind="stable"))
    at = np.log(curve.c)
    inside = (c >= curve.c[0]) & (c <= curve.c[-1])
    for table, y in ((losses, curve.loss), (sizes, curve.n), (tokens, curve.d)):
      table[i, inside] = np.exp(np.interp(np.log(c[inside]), at, np.log(y)))
  several = (~np.isnan(losses)).sum(0) > 1 if names else np.zeros(budgets, bool)
  if several.sum() < _LEAST:
    raise InputError(
      "the envelope needs at least two training curves of several points whose FLOPs "
      "overlap, named by a column of runs; --frontier=hull works on single points"
    )
  best = np.nanargmin(losses[:, several], axis=0)
  column = np.flatnonzero(several)
  return make(
    c[several], sizes[best, column], tokens[best, column], losses[best, column],
    f"the lowest of {len(names)} curves at {several.sum()} budgets; "
    f"{len(np.unique(best))} curves touch the envelope",
  )  # fmt: skip


WAYS = {"hull": hull, "envelope": envelope}


def bootstrap(points: Points, way: str, samples: int, seed: int = 0) -> np.ndarray:
  """float64[samples, 2]: a and b of samples of runs, drawn with replacement.

  Samples with too few corners are left out.
  """
  rng = np.random.default_rng(seed)
  members, found = points.rows_of_runs(), []
  with console.Bar("bootstrap", samples, "samples") as bar:
    for _ in range(samples):
      drawn = rng.integers(len(members), size=len(members))
      drawn = np.unique(drawn)  # twice is as once
      try:
        one = WAYS[way](points.take(np.concatenate([members[i] for i in drawn])))
        found.append((one.a, one.b))
      except InputError:
        pass
      bar.update()
  return np.asarray(found).reshape(-1, 2)
