"""One approach on one set of points: numbers with intervals, budgets, and warnings."""

import dataclasses
from typing import Any

import numpy as np

from jaxpeft.errors import InputError, unknown
from jaxpeft.scaling import frontier, isoflop, laws, parametric, trust
from jaxpeft.scaling.points import Points

APPROACHES = (1, 2, 3)
_INFLUENCE = 2_000  # points: among more, no single one decides


@dataclasses.dataclass(frozen=True)
class Number:
  """A number of a fit; error and ends are None without a bootstrap."""

  name: str
  value: float
  error: float | None = None
  low: float | None = None
  high: float | None = None


@dataclasses.dataclass(frozen=True)
class Budget:
  """The optimum for c FLOPs, with (low, high) of n and of d / n."""

  c: float
  n: float
  d: float
  ratio: float
  n_ends: tuple[float, float] | None = None
  ratio_ends: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
  """What an approach found.

  title: one line.
  numbers: parameters and exponents.
  budgets: the optimum for budgets; empty where the law has none.
  said: sentences about how the fit went.
  warnings: what speaks against it.
  fitted: the law and its samples, as `scaling plan --law` reads it, or None.
  source: the `Fit`, `Frontier` or `IsoFlop`, for pictures.
  """

  approach: int
  title: str
  numbers: tuple[Number, ...]
  budgets: tuple[Budget, ...]
  said: tuple[str, ...]
  warnings: tuple[str, ...]
  fitted: laws.Fitted | None
  source: Any


@dataclasses.dataclass(frozen=True)
class Options:
  """How an approach is done.

  frontier: of approach 1, "hull" or "envelope".
  budgets: of approach 2, FLOPs; empty for those of the points.
  within: of approach 2, see `isoflop`.
  delta, starts: of approach 3.
  law: of approach 3, "parametric", "width-depth" or "shape" (without N).
  samples: of the bootstrap; 0 for none; None for 4,000 of approach 3 (the coefficients
    have heavy tails) and 1,000 of the others.
  level: of the intervals.
  flops: budgets whose optimum is shown; empty for the largest of the data and 100 x it.
  seed: of starts and of the bootstrap.
  """

  frontier: str = "hull"
  budgets: tuple[float, ...] = ()
  within: float = isoflop.WITHIN
  delta: float = parametric.DELTA
  starts: int = 128
  law: str = "parametric"
  samples: int | None = None
  level: float = 0.95
  flops: tuple[float, ...] = ()
  seed: int = 0


def run(points: Points, approach: int, options: Options = Options()) -> Result:
  """Fits by an approach, with intervals and warnings.

  Raises:
    InputError: an option is out of its range, or the points do not allow the fit.
  """
  if approach not in APPROACHES:
    raise InputError(f"--approach={approach} is not 1, 2 or 3")
  o = options
  if o.samples is None:
    o = dataclasses.replace(o, samples=4_000 if approach == 3 else 1_000)
  assert o.samples is not None
  if o.samples and not 20 <= o.samples <= 100_000:
    raise InputError(f"--bootstrap={o.samples} is not 0, or from 20 to 100,000")
  if not 0.5 <= o.level < 1:
    raise InputError(f"--level={o.level} is not from 0.5 to below 1")
  if o.frontier not in frontier.WAYS:
    raise unknown("frontier", o.frontier, frontier.WAYS)
  if not 1 < o.within <= 1e6:
    raise InputError(f"--within={o.within} is not a factor above 1")
  if not 1 <= o.starts <= 100_000:
    raise InputError(f"--starts={o.starts} is not from 1 to 100,000")
  if not 0 <= o.seed < 2**64:
    raise InputError(f"--seed={o.seed} is not from 0 to {2**64 - 1}")
  points.check(approach)
  if approach == 3:
    return _third(points, o)
  return _powers(points, approach, o)


def _powers(points: Points, approach: int, o: Options) -> Result:
  """Approaches 1 and 2: lines through optimal models."""
  if len(np.unique(points.n)) < 2:
    raise InputError(f"all points have n = {points.n[0]:g}; add other sizes")
  count = o.samples or 0
  if approach == 1:
    source = front = frontier.WAYS[o.frontier](points)
    drawn = frontier.bootstrap(points, o.frontier, count, o.seed)
  else:
    source = isoflop.fit(points, o.budgets, o.within)
    front = source.frontier
    drawn = isoflop.bootstrap(source, count, o.seed)
  samples = drawn if len(drawn) >= max(2, 0.5 * count) else None
  numbers = [
    number("a", front.a, samples, 0, o.level), number("b", front.b, samples, 1, o.level)
  ]  # fmt: skip
  lost = count - len(drawn)
  warned = trust.data(points) + trust.copies(points)
  if lost > 0.1 * count:
    warned.append(
      f"{lost} of {count} bootstrap samples gave no line: the optimum rests on few "
      "models, and the interval is too narrow"
    )
  if abs(front.a + front.b - 1) > 0.05:
    warned.append(
      f"a + b is {front.a + front.b:.2f} and not 1: C is not proportional to N D, by "
      "the counting of FLOPs or by noise"
    )
  warned += [
    f"the budget of {p.budget:.3g} FLOPs is left out: {p.why}"
    for p in (source.parabolas if isinstance(source, isoflop.IsoFlop) else ())
    if p.why
  ]
  if len(front.c) < 6:
    warned.append(f"the line goes through {len(front.c)} points only")
  budgets = [_budget(c, front.optimum, None, o.level) for c in shown(points, o)]
  warned += [w for b in budgets if (w := trust.beyond(points, b.c, b.n, b.d))]
  scale = float(np.exp(front.n_line.log_scale))
  fitted = None
  if 0 < front.a < 1:
    fitted = laws.Fitted(
      laws.Allocation(scale, front.a), f"approach {approach}: {front.how}",
      _counts(points), _span(points),
    )  # fmt: skip
  said = (
    f"N_opt = {scale:.4g} C^{front.a:.4g}, from {front.how}; the line explains "
    f"{front.n_line.r2:.1%} of the variance of ln N",
  )
  title = f"approach {approach}: {len(points)} points, {points.counted}"
  return Result(
    approach, title, tuple(numbers), tuple(budgets), said, tuple(warned), fitted, source
  )


def _third(points: Points, o: Options) -> Result:
  """Approach 3."""
  terms = parametric.terms_of(o.law)
  fit = parametric.fit(points, o.delta, terms, o.starts, o.seed)
  samples = parametric.bootstrap(fit, o.samples, o.seed) if o.samples else None
  found = trust.quality(fit, influence=len(points) <= _INFLUENCE)
  numbers = [
    number(name, value, drawn, None, o.level)
    for name, value, drawn in _named(fit.theta, samples, terms)
  ]
  warned = trust.warnings(fit, samples, found)
  if samples is not None and points.curves():
    warned.append(
      "points of one training curve are not independent, so whole curves were drawn "
      f"({len(np.unique(points.run))} of them)"
    )
  title = (
    f"approach 3: {len(points)} points, {points.counted}, delta {o.delta:g}, "
    f"law {o.law}"
  )
  said = (
    f"f = {fit.objective:.7e}, reached from {fit.reached} of {fit.starts} starts",
    f"ln L is off by {found.rms:.2%} (root mean square), at most {found.largest:+.1%}; "
    f"the law explains {found.r2:.2%} of its variance",
  )
  if terms != parametric.PARAMETERS:
    fitted = _width_depth(fit, samples, points)
    return Result(3, title, tuple(numbers), (), said, tuple(warned), fitted, fit)
  law = fit.law
  drawn: Any = None
  if samples is not None:
    drawn = {name: x for name, _, x in _named(fit.theta, samples, terms)}
    drawn = {k: v for k, v in drawn.items() if k not in "ab" and v is not None}
  budgets = []
  several = laws.Parametric(**drawn) if drawn else None
  for c in shown(points, o):
    budgets.append(_budget(c, law.optimum, several, o.level))
  warned += [w for b in budgets if (w := trust.beyond(points, b.c, b.n, b.d))]
  fitted = None
  if min(law.A, law.B, law.alpha, law.beta) > 0 and np.isfinite([law.A, law.B]).all():
    about = f"approach 3 on {len(points)} points, delta {o.delta:g}"
    fitted = laws.Fitted(law, about, _counts(points), _span(points), drawn)
  return Result(
    3, title, tuple(numbers), tuple(budgets), said, tuple(warned), fitted, fit
  )


def _named(theta, samples, terms):
  """(name, value, float64[S] or None) of the numbers that people read."""
  k = len(terms)

  def column(i, change=lambda x: x):
    return change(theta[i]), None if samples is None else change(samples[:, i])

  if terms == parametric.PARAMETERS:
    names = (("A", 0), ("B", 1), ("E", 4), ("alpha", 2), ("beta", 3))
    with np.errstate(over="ignore"):
      for name, i in names:
        yield name, *column(i, np.exp if i in (0, 1, 4) else lambda x: x)
    a = parametric.exponent(theta)
    drawn = None if samples is None else parametric.exponent(samples)
    yield "a", a, drawn
    yield "b", 1 - a, None if drawn is None else 1 - drawn
    return
  for i, name in enumerate(terms):
    yield f"c_{name}", *column(i)
  for i, name in enumerate(terms):
    yield f"alpha_{name}", *column(k + i)
  yield "E", *column(2 * k, np.exp)


def _width_depth(fit, samples, points) -> laws.Fitted:
  names = {"width": "width", "depth": "depth", "n": "n", "d": "tokens"}
  k = len(fit.terms)

  def given(theta):
    own = {f"c_{names[x]}": theta[..., i] for i, x in enumerate(fit.terms)}
    own |= {f"a_{names[x]}": theta[..., k + i] for i, x in enumerate(fit.terms)}
    return own | {"e": theta[..., 2 * k]}

  law = laws.WidthDepth(**{x: float(v) for x, v in given(fit.theta).items()})
  drawn = None if samples is None else given(samples)
  return laws.Fitted(law, "approach 3", _counts(points), _span(points), drawn)


def number(name, value, samples, column, level: float) -> Number:
  """A number with its standard error and the percentile interval of samples."""
  if samples is None:
    return Number(name, float(value))
  drawn = samples if column is None else samples[:, column]
  tail = 50 * (1 - level)
  low, high = np.percentile(drawn, [tail, 100 - tail])
  return Number(name, float(value), float(drawn.std()), float(low), float(high))


def shown(points: Points, o: Options) -> tuple[float, ...]:
  """The budgets whose optimum is shown."""
  top = float(points.c.max())
  return o.flops or (top, 100 * top)


def _budget(c: float, optimum, several, level: float) -> Budget:
  try:
    n, d = (float(x) for x in optimum(c))
  except (OverflowError, ZeroDivisionError):  # of Python's numbers
    n = d = float("nan")
  if not (n > 0 and np.isfinite([n, d]).all()):
    raise InputError(f"the law of these data overflows at {c:.3g} FLOPs; add points")
  if several is None:
    return Budget(c, n, d, d / n)
  tail = 50 * (1 - level)
  with np.errstate(all="ignore"):
    ns, ds = several.optimum(c)
  ends = [np.percentile(x, [tail, 100 - tail]) for x in (ns, ds / ns)]
  pair = [(float(x[0]), float(x[1])) for x in ends]
  return Budget(c, n, d, d / n, *pair)


def _counts(points: Points) -> str:
  return "without embeddings" if "without" in points.counted else "all"


def _span(points: Points) -> dict[str, tuple[float, float]]:
  return {
    k: (float(getattr(points, k).min()), float(getattr(points, k).max())) for k in "ndc"
  }
