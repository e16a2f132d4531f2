"""Approach 3: a parametric law fitted to all points, and how far it can be trusted.

The law is Chinchilla's, L = E + A / N^alpha + B / D^beta, or one with other quantities:
Gemstones' law of width and depth. `huber` says what is minimized, and how.

Sources: Hoffmann et al. 2022, section 3.3; Besiroglu et al. 2024 (Epoch AI), who found
that the published fit was no minimum; McLeish et al. 2025.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft import console
from jaxpeft.errors import InputError, unknown
from jaxpeft.scaling import huber, laws
from jaxpeft.scaling.points import Points

DELTA = 1e-3
PARAMETERS = ("n", "d")
WIDTH_DEPTH = ("width", "depth", "n", "d")
SHAPE = ("width", "depth", "d")
_KINDS = {"parametric": PARAMETERS, "width-depth": WIDTH_DEPTH, "shape": SHAPE}


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
  """A fitted law.

  points: what it was fitted to.
  terms: the quantities of the law, of `Points`.
  delta: of Huber's loss.
  theta: float64[T], in the order c_1, ..., alpha_1, ..., e; see `huber`.
  objective: f, the sum of Huber's losses.
  starts: how many the search had; `reached` of them ended at this minimum.
  """

  points: Points
  terms: tuple[str, ...]
  delta: float
  theta: np.ndarray
  objective: float
  starts: int
  reached: int

  @property
  def law(self) -> laws.Parametric:
    """Chinchilla's law; raises InputError for other terms."""
    return law_of(self.theta, self.terms)

  def residuals(self) -> np.ndarray:
    """float64[P]: ln L predicted - ln L."""
    return log_loss(self.theta, _logs(self.points, self.terms)) - np.log(
      self.points.loss
    )


def law_of(theta: np.ndarray, terms=PARAMETERS) -> laws.Parametric:
  """Chinchilla's law of parameters float64[5]."""
  if terms != PARAMETERS:
    raise InputError(f"a law of {', '.join(terms)} is not Chinchilla's law of n and d")
  a, b, alpha, beta, e = map(float, theta)
  big_a, big_b, floor = (float(np.exp(x)) for x in (a, b, e))
  return laws.Parametric(big_a, big_b, floor, alpha, beta)


def theta_of(law: laws.Parametric) -> np.ndarray:
  """float64[5]: a law's parameters."""
  logs = np.log([law.A, law.B, law.E])
  return np.array([logs[0], logs[1], law.alpha, law.beta, logs[2]])


def log_loss(theta: np.ndarray, logs: np.ndarray) -> np.ndarray:
  """ln L, float64[P], of ln x, float64[P, K]."""
  k = logs.shape[1]
  terms = theta[:k] - theta[k : 2 * k] * logs
  return np.logaddexp(np.logaddexp.reduce(terms, 1), theta[2 * k])


def _logs(points: Points, terms) -> np.ndarray:
  columns = [getattr(points, name) for name in terms]
  if any(column is None for column in columns):
    raise InputError(
      f"a law of {', '.join(terms)} needs columns for all; name them, e.g. "
      "--columns=width=WIDTH,depth=LAYERS"
    )
  return np.log(np.stack(columns, 1))


def centered(theta: np.ndarray, middle: np.ndarray, back: bool = False) -> np.ndarray:
  """Parameters [..., T] for z = ln x - middle from those for ln x, or back."""
  k = len(middle)
  theta = np.array(theta)
  sign = 1 if back else -1
  theta[..., :k] += sign * theta[..., k : 2 * k] * middle
  return theta


def terms_of(kind: str) -> tuple[str, ...]:
  """The quantities of a kind of law; raises InputError for an unknown kind."""
  if kind not in _KINDS:
    raise unknown("law", kind, _KINDS)
  return _KINDS[kind]


def fit(
  points: Points,
  delta: float = DELTA,
  terms: tuple[str, ...] = PARAMETERS,
  starts: int = huber.LANES,
  seed: int = 0,
) -> Fit:
  """The law with the smallest sum of Huber's losses that the search finds.

  Args:
    points: more than the law has parameters.
    delta: where Huber's loss becomes linear, in units of ln L; large for least squares.
    terms: the quantities of the law.
    starts: where the search begins.
    seed: of the starts.
  Raises:
    InputError: too few points or different sizes, a column is missing, or delta is not
      positive.
  """
  logs, y, middle = arrays(points, delta, terms)
  with console.waiting("fitting"), jax.enable_x64(True):
    of = huber.problem(logs, y, delta)
    found, values = huber.minimize(of, huber.starts(of, starts, seed))
  if not np.isfinite(values[0]):
    raise InputError("no start of the fit gave a finite loss; check the points")
  reached = int((values <= values[0] * (1 + 1e-6)).sum())
  theta = centered(found[0], middle, back=True)
  return Fit(points, terms, delta, theta, float(values[0]), starts, reached)


def arrays(points: Points, delta: float, terms):
  """(ln x float64[P, K], ln L float64[P], means of ln x float64[K]), all checked."""
  if not (isinstance(delta, int | float) and 1e-9 <= delta <= 1e9):
    raise InputError(f"--delta={delta} is not from 1e-9 to 1e9; 1e-3 is common")
  logs = _logs(points, terms)
  points.check(3)
  needed = 2 * len(terms) + 1
  if len(points) <= needed:
    raise InputError(
      f"{len(points)} points are too few for {needed} parameters; add points, at least "
      f"{needed + 1}"
    )
  for name, column in zip(terms, logs.T, strict=True):
    count = len(np.unique(np.round(column, 9)))
    if count < 3:
      raise InputError(
        f"there are {count} different values of {name}, but a power of it above a "
        "floor needs at least 3"
      )
  if np.ptp(np.log(points.loss)) < 1e-9:
    raise InputError(
      f"all losses are {points.loss[0]:g}, so they say nothing of n and d; name the "
      "column of losses, e.g. --columns=loss=LOSS"
    )
  return logs, np.log(points.loss), logs.mean(0)


def objective(
  points: Points, theta: np.ndarray, delta: float, terms=PARAMETERS
) -> float:
  """f of given parameters: the sum of Huber's losses."""
  r = np.abs(log_loss(theta, _logs(points, terms)) - np.log(points.loss))
  return float(np.where(r <= delta, r**2 / 2, delta * (r - delta / 2)).sum())


def refit(fit: Fit, weights: np.ndarray, label: str | None = None) -> np.ndarray:
  """float64[S, T]: the parameters under each row of weights, float64[S, P].

  Newton's method starts at the fit. Tests compare it with the full search.
  """
  return _refit(fit, lambda rows: weights[rows], len(weights), label)


def _refit(fit: Fit, weights: Callable, count: int, label: str | None) -> np.ndarray:
  """As `refit`; weights(int[R]), for consecutive rows, is made part by part.

  All of the weights would not fit into memory if there are many points.
  """
  logs, y, middle = arrays(fit.points, fit.delta, fit.terms)
  found = []
  with jax.enable_x64(True), console.Bar(label, count, "samples") as bar:
    of = huber.problem(logs, y, fit.delta)
    start = centered(fit.theta, middle)[None]
    size, more = huber.lane(count), len(of.weights) - len(logs)
    for first in range(0, count, size):
      own = weights(np.arange(first, min(first + size, count)))
      part = np.pad(own, [(0, size - len(own)), (0, 0)], "edge")
      part = jnp.asarray(np.pad(part, [(0, 0), (0, more)]))
      theta, _ = huber.refine(of, jnp.asarray(np.repeat(start, size, 0)), part)
      found.append(np.asarray(theta))
      bar.update(len(own))
  return centered(np.concatenate(found)[:count], middle, back=True)


def bootstrap(
  fit: Fit, samples: int = 1_000, seed: int = 0, by_run: bool | None = None
):
  """float64[samples, T]: the parameters for points drawn with replacement.

  Args:
    fit: the fit.
    samples: how many.
    seed: of the draws.
    by_run: draw training curves with all their points, because points of a curve are
      not independent; by default where curves have several points.
  """
  if not 2 <= samples <= 100_000:
    raise InputError(f"{samples} bootstrap samples are not from 2 to 100,000")
  rng = np.random.default_rng(seed)
  by_run = fit.points.curves() if by_run is None else by_run
  if by_run:
    names, number = np.unique(fit.points.run, return_inverse=True)
    if len(names) < 3:
      raise InputError(
        f"{len(names)} training curves are too few for a bootstrap of them"
      )
  else:
    number = np.arange(len(fit.points))
  count = int(number.max()) + 1

  def weights(rows):
    drawn = rng.integers(count, size=(len(rows), count))
    times = np.stack([np.bincount(row, minlength=count) for row in drawn])
    return times[:, number].astype(np.float64)

  return _refit(fit, weights, samples, "bootstrap")


def leave_one_out(fit: Fit) -> np.ndarray:
  """float64[P, T]: the parameters without each point."""
  count = len(fit.points)

  def weights(rows):
    return (rows[:, None] != np.arange(count)).astype(np.float64)

  return _refit(fit, weights, count, "leaving out points")


def exponent(theta: np.ndarray) -> np.ndarray:
  """float64[S]: a = beta / (alpha + beta) of parameters float64[S, 5]."""
  return theta[..., 3] / (theta[..., 2] + theta[..., 3])
