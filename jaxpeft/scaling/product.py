"""Fits the multiplicative law of fine-tuning, L = E + A / (X^alpha D^beta).

For a given E, ln(L - E) is linear in ln X and ln D, so least squares give the other
numbers directly. E is searched on a grid, and again on finer grids. The search
minimizes the squared error of ln L. It needs no starting point.
Axes: S samples, G values of E, P points.
"""

import numpy as np

from jaxpeft.errors import InputError
from jaxpeft.scaling import laws

LEAST = 6  # points: two more than the law has numbers
_GRID, _SPARE, _NUMBERS = 161, 1e-3, 4_000_000


def fit(x, d, loss) -> laws.Multiplicative:
  """The law with the least squared error of ln L.

  Args:
    x: float[P], e.g. trained parameters.
    d: float[P], rows or tokens of data.
    loss: float[P], in nats.
  Raises:
    InputError: too few points, or only one value of x or two of d.
  """
  x, d, loss = (np.asarray(values, np.float64) for values in (x, d, loss))
  if len(loss) < LEAST or len(np.unique(x)) < 2 or len(np.unique(d)) < 3:
    raise InputError(
      f"the law of fine-tuning needs at least {LEAST} runs, with two sizes of adapters "
      f"and three amounts of data; there are {len(loss)}, with {len(np.unique(x))} and "
      f"{len(np.unique(d))}"
    )
  return laws.Multiplicative(
    **{k: float(v[0]) for k, v in _solve(x, d, loss, np.ones((1, len(loss)))).items()}
  )


def bootstrap(x, d, loss, samples: int = 1000, seed: int = 0) -> dict[str, np.ndarray]:
  """{name: float64[S]} of the law's numbers, for points drawn with replacement.

  Draws that have too few different points for a law are left out.
  """
  x, d, loss = (np.asarray(values, np.float64) for values in (x, d, loss))
  rows = np.random.default_rng(seed).integers(0, len(loss), (samples, len(loss)))
  good = [len(np.unique(x[r])) > 1 and len(np.unique(d[r])) > 2 for r in rows]
  counts = np.stack([np.bincount(r, minlength=len(loss)) for r in rows[good]])
  step = max(1, _NUMBERS // (_GRID * len(loss)))
  parts = [
    _solve(x, d, loss, counts[i : i + step]) for i in range(0, len(counts), step)
  ]
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _solve(x, d, loss, counts) -> dict[str, np.ndarray]:
  """The laws' numbers, float64[S] each, for counts [S, P] of the points."""
  least = np.where(counts > 0, loss, np.inf).min(1) * (1 - _SPARE)
  low, high = np.zeros(len(counts)), least
  best = None
  for _ in range(3):
    grid = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, _GRID)
    error, theta = _planes(x, d, loss, counts, grid)
    i = error.argmin(1)[:, None]
    floor = np.take_along_axis(grid, i, 1)[:, 0]
    best = floor, np.take_along_axis(theta, i[..., None], 1)[:, 0]
    width = (high - low) / (_GRID - 1)
    low, high = np.maximum(0, floor - width), np.minimum(least, floor + width)
  assert best is not None
  floor, theta = best
  return dict(A=np.exp(theta[:, 0]), E=floor, alpha=-theta[:, 1], beta=-theta[:, 2])


def _planes(x, d, loss, counts, grid):
  """(squared errors [S, G], planes [S, G, 3]) for floors [S, G]."""
  design = np.stack([np.ones_like(x), np.log(x), np.log(d)], 1)
  above = np.maximum(loss - grid[..., None], 1e-9 * loss)  # [S, G, P]
  # An error of ln L is one of ln(L - E) times (L - E) / L.
  weights = counts[:, None] * (above / loss) ** 2
  left = np.einsum("sgp,pi,pj->sgij", weights, design, design, optimize=True)
  left += 1e-12 * np.eye(3)
  right = np.einsum("sgp,sgp,pi->sgi", weights, np.log(above), design, optimize=True)
  theta = np.linalg.solve(left, right[..., None])[..., 0]
  predicted = grid[..., None] + np.exp(np.clip(theta @ design.T, -700, 700))
  error = (counts[:, None] * np.log(predicted / loss) ** 2).sum(-1)
  return error, theta
