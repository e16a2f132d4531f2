"""What speaks against a fit: warnings in plain words, each with what to do about it.

The early-stopping trap: the objective of Hoffmann et al. is flat at their published
constants. A search that minimizes the mean over points, or stops at a usual tolerance,
ends where it started. Besiroglu et al. 2024 found this in the published fit.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft.scaling import huber, parametric
from jaxpeft.scaling.parametric import Fit
from jaxpeft.scaling.points import Points

_GAP = 0.01  # of f; rounding a law to four digits costs up to half of it
_SPAN = 10.0  # the least ratio of the largest to the smallest N or D
_WIDE = 0.3  # of an interval of a
_STEEP = 1.5  # an exponent that no study has found
_FAR = 10.0  # times the range of the data


@dataclasses.dataclass(frozen=True, eq=False)
class Quality:
  """How well a law describes its points.

  rms: root of the mean square of ln L predicted - ln L; about the relative error.
  largest: the ln L predicted - ln L that is farthest from 0; `worst` is its row.
  r2: the share of the variance of ln L that the law explains.
  influence: float64[P], how a changes without each point; None if not computed.
  """

  rms: float
  largest: float
  worst: int
  r2: float
  influence: np.ndarray | None


def quality(fit: Fit, influence: bool = True) -> Quality:
  """The residuals of a fit and, for Chinchilla's law, the influence of each point."""
  r, y = fit.residuals(), np.log(fit.points.loss)
  moved = None
  if influence and fit.terms == parametric.PARAMETERS:
    moved = parametric.exponent(parametric.leave_one_out(fit)) - fit.law.a
  worst = int(np.abs(r).argmax())
  r2 = 1 - (r**2).sum() / max(((y - y.mean()) ** 2).sum(), 1e-300)
  return Quality(
    float(np.sqrt((r**2).mean())), float(r[worst]), worst, float(r2), moved
  )


def stopped(points: Points, law, delta: float = parametric.DELTA):
  """The law where a careless search that begins at `law` ends.

  It runs L-BFGS on the mean over points, in ln x, until a step lowers the mean by less
  than 2.2e-9 * max(1, mean), the default of scipy's L-BFGS-B. The mean is about 1e-6,
  so the search stops after a few steps: this is the early-stopping trap.
  """
  logs, y, _ = parametric.arrays(points, delta, parametric.PARAMETERS)
  theta = parametric.theta_of(law)
  with jax.enable_x64(True):
    of = huber.problem(logs, y, delta)
    fill = len(of.weights) - len(logs)
    raw = dataclasses.replace(of, z=jnp.asarray(np.pad(logs, [(0, fill), (0, 0)])))
    start, before = jnp.asarray(theta)[None], np.inf
    for steps in range(1, 100):
      theta = np.asarray(huber.descend(raw, start, steps, 0.0, mean=True)[0][0])
      now = parametric.objective(points, theta, delta) / len(points)
      if before - now <= 2.2e-9 * max(1.0, before):
        break
      before = now
  return parametric.law_of(theta)


def early(points: Points, law, fit: Fit) -> str | None:
  """A warning if `law` is no minimum of the objective that `fit` minimized, or None."""
  own = parametric.objective(
    points, parametric.theta_of(law), fit.delta, parametric.PARAMETERS
  )
  gap = own / fit.objective - 1
  if gap <= _GAP:
    return None
  return (
    f"these numbers are no minimum: f is {own:.7g} there, {gap:.1%} above the "
    f"{fit.objective:.7g} that {fit.reached} of {fit.starts} starts reach. A search "
    "that stops early stays near its start: minimize the sum over points and not the "
    "mean, scale it up, and tighten the tolerance"
  )


def warnings(fit: Fit, samples: np.ndarray | None, found: Quality | None) -> list[str]:
  """What speaks against a fit of approach 3.

  Args:
    fit: the fit.
    samples: float64[S, T] of its bootstrap, if there is one.
    found: its quality, if that was computed.
  """
  said = search(fit) + identified(fit, samples) + data(fit.points) + copies(fit.points)
  if found is not None and found.influence is not None:
    said += _influence(fit, samples, found.influence)
  said += _outliers(fit)
  return said


def search(fit: Fit) -> list[str]:
  """Whether the search can have missed the minimum."""
  if fit.reached * 10 >= fit.starts:
    return []
  return [
    f"only {fit.reached} of {fit.starts} starts reached the lowest f; there may be a "
    "lower one: raise --starts"
  ]


def identified(fit: Fit, samples: np.ndarray | None) -> list[str]:
  """Whether the data say what the parameters are."""
  k, said = len(fit.terms), []
  for i, name in enumerate(fit.terms):
    slope, spread = fit.theta[k + i], np.ptp(np.log(getattr(fit.points, name)))
    what = f"the exponent of {name}"
    ratio = f"{name} varies by a factor of {np.exp(spread):.3g} only"
    if not 0 < slope < _STEEP:
      said.append(
        f"{what} is {slope:.3g}, which no study has found: the data do not identify it "
        f"({ratio if spread < np.log(_SPAN) else 'too few or too noisy points'})"
      )
    elif spread < np.log(_SPAN):
      said.append(f"{ratio}: its exponent rests on little; add sizes")
  floor = np.exp(fit.theta[2 * k])
  if floor < 0.05 * fit.points.loss.min():
    said.append(
      f"E is {floor:.3g}, next to nothing: the data do not show the floor of the loss"
    )
  if samples is not None and fit.terms == parametric.PARAMETERS:
    low, high = np.percentile(parametric.exponent(samples), [2.5, 97.5])
    for i, name in ((2, "alpha"), (3, "beta")):
      ends = np.percentile(samples[:, i], [2.5, 97.5])
      if ends[0] <= 0 or ends[1] > 3 * ends[0]:
        said.append(
          f"{name} is not identified: its 95 % interval is {ends[0]:.3g} to "
          f"{ends[1]:.3g}"
        )
    if high - low > _WIDE:
      said.append(
        f"a is not identified: its 95 % interval is {low:.2f} to {high:.2f}; do not "
        "plan with this law"
      )
  return said


def data(points: Points) -> list[str]:
  """What is wrong with the points themselves."""
  said = []
  where = np.stack([points.n, points.d], 1)
  _, row, count = np.unique(where, axis=0, return_inverse=True, return_counts=True)
  row = row.ravel()
  repeated = np.flatnonzero(count > 1)
  apart = [np.ptp(np.log(points.loss[row == i])) for i in repeated[:1_000]]
  if len(apart) and np.median(apart) > 0.01:
    said.append(
      f"{len(repeated)} pairs of N and D occur with different losses, typically "
      f"{np.median(apart):.1%} apart: the file may hold several studies; take one by "
      "--where=COLUMN=VALUE"
    )
  return said


def copies(points: Points) -> list[str]:
  """Whether points occur twice."""
  every = np.stack([points.n, points.d, points.loss], 1)
  same = len(every) - len(np.unique(every, axis=0))
  if not same:
    return []
  return [
    f"{same} points are copies of others, with the same N, D and loss: they count "
    "twice, and make the intervals too narrow; leave them out"
  ]


def _influence(fit: Fit, samples, moved: np.ndarray) -> list[str]:
  """The points that decide the exponent alone."""
  error = 0.02 if samples is None else parametric.exponent(samples).std()
  order = np.argsort(-np.abs(moved))[:3]
  strong = [i for i in order if abs(moved[i]) > error / 2]
  if not strong:
    return []
  p = fit.points
  names = "; ".join(
    f"N {p.n[i]:.3g}, D {p.d[i]:.3g}, L {p.loss[i]:.3f}: {moved[i]:+.3f}"
    for i in strong
  )
  return [f"single points move a by more than half its standard error ({names})"]


def _outliers(fit: Fit) -> list[str]:
  r = np.abs(fit.residuals() - np.median(fit.residuals()))
  far = np.flatnonzero(r > 10 * 1.4826 * max(float(np.median(r)), 1e-12))
  if not len(far):
    return []
  return [
    f"{len(far)} points lie more than 10 standard deviations off (the worst by "
    f"{r.max():.1%} of the loss); compare with --drop_highest or scaling sensitivity"
  ]


def beyond(points: Points, c: float, n: float, d: float) -> str | None:
  """A warning if a budget's optimum lies far from the data, or None."""
  times = {
    "FLOPs": c / points.c.max(), "N": n / points.n.max(), "D": d / points.d.max()
  }  # fmt: skip
  far = {name: x for name, x in times.items() if x > _FAR}
  if not far:
    return None
  told = ", ".join(f"{name} {x:,.0f} times" for name, x in far.items())
  return (
    f"{c:.3g} FLOPs are an extrapolation: beyond the largest in the data by {told}. "
    "Intervals do not say whether the law holds there"
  )
