"""The same data under every choice of counting, rows and fitting: how far a moves.

Kaplan et al. found that the best N grows as C^0.73, Hoffmann et al. as C^0.50. Much of
the difference comes from what is counted and which runs are compared. So one table of
losses can give both. The choices are

  counting   embeddings counted or not, the output layer, FLOPs of attention
  rows       outliers dropped, halves by N, by D and by shape, values of a column
  fitting    the approach, hull or envelope, Huber's delta, a search that stops early

Sources: Pearce and Song 2024; Porian et al. 2024; McLeish et al. 2025.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from jaxpeft import console
from jaxpeft.errors import InputError, unknown
from jaxpeft.scaling import frontier, isoflop, laws, parametric, trust
from jaxpeft.scaling.points import FLOPS, LEAST, Points

KAPLAN, CHINCHILLA = 0.73, 0.50
_MOST = 200  # fits of one column's values


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What one choice gives.

  group: "counting", "rows", "fitting" or "as given".
  choice: in words.
  approach: 1, 2 or 3.
  points: how many were fitted.
  a: the exponent of the best N; None if the fit failed, and `why` says why.
  n, ratio: the best N, and tokens per parameter, for the budget.
  """

  group: str
  choice: str
  approach: int
  points: int
  a: float | None = None
  n: float | None = None
  ratio: float | None = None
  why: str = ""


@dataclasses.dataclass(frozen=True)
class Choices:
  """What is varied besides what the points allow.

  by: a column; the rows of each of its values are fitted alone. None is off.
  approaches: the numbers of the approaches to run.
  gamma: of Pearce and Song's estimate, N_T = N_E + gamma N_E^(1/3), for points with
    neither a width nor a count without embeddings; 0 turns the estimate off.
  vocabulary, context: of the models, for points with a width.
  starts: of each search of approach 3.
  """

  by: str | None = None
  approaches: tuple[int, ...] = (1, 2, 3)
  gamma: float = laws.GAMMA
  vocabulary: int = 50_304
  context: int = 2_048
  starts: int = 64


def run(points: Points, c: float, choices: Choices = Choices()) -> list[Outcome]:
  """The outcomes of all choices, for a budget of c FLOPs.

  Raises:
    InputError: c is not positive, or no choice can be fitted.
  """
  if not 0 < c < np.inf:
    raise InputError(f"a budget of {c} FLOPs is not positive")
  todo = list(_fits(points, choices))
  found = []
  with console.Bar("refitting", len(todo), "fits") as bar:
    for group, choice, approach, given, how in todo:
      found.append(_outcome(group, choice, approach, given, how, c))
      bar.update()
  if all(one.a is None for one in found):
    raise InputError(f"no choice can be fitted: {found[0].why}")
  return found


def _outcome(
  group, choice, approach, given: Points, how: Callable, c: float
) -> Outcome:
  base = (group, choice, approach, len(given))
  try:
    a, optimum = how(given)
  except InputError as e:
    return Outcome(*base, why=str(e))
  n, d = (float(x) for x in optimum(c))
  if not (np.isfinite([a, n, d]).all() and n > 0):
    return Outcome(*base, why="the law has no optimum")
  return Outcome(*base, float(a), n, d / n)


def _fits(points: Points, choices: Choices) -> Iterator[tuple]:
  """(group, choice, approach, points, how) of every fit."""
  usual = {i: _usual(i, choices) for i in choices.approaches}
  for group, choice, given, only in _variants(points, choices):
    for approach, how in usual.items():
      if approach in only:
        yield group, choice, approach, given, how
  if choices.by and trust.data(points):
    return
  for choice, approach, how in _methods(choices, points):
    if approach in choices.approaches:
      yield "fitting", choice, approach, points, how


def _usual(approach: int, choices: Choices) -> Callable:
  if approach == 1:
    return _front(frontier.hull)
  if approach == 2:
    return _front(lambda p: isoflop.fit(p).frontier)
  if approach == 3:
    return _law(parametric.DELTA, choices.starts)
  raise InputError(f"approach {approach} is not 1, 2 or 3")


def _front(way: Callable) -> Callable:
  def fit(points):
    found = way(points)
    return found.a, found.optimum

  return fit


def _law(delta: float, starts: int) -> Callable:
  def fit(points):
    law = parametric.fit(points, delta, starts=starts).law
    if not (law.alpha > 0 and law.beta > 0):
      raise InputError("an exponent of the law is not positive")
    return law.a, law.optimum

  return fit


def _careless(points: Points):
  law = trust.stopped(points, laws.PUBLISHED["chinchilla-3"].law)
  return law.a, law.optimum


def _as_kaplan(gamma: float, starts: int, counted: int) -> Callable:
  """The exponent that a study of Kaplan's sizes sees where the fitted law holds.

  counted: 0 for N and C without embeddings, 1 with them.
  """

  def fit(points):
    law = parametric.fit(points, starts=starts).law
    without = laws.WithoutEmbedding(law, gamma)
    seen = without.optimum if counted == 0 else law.optimum
    return laws.observed_exponents(without)[counted], seen

  return fit


def _methods(choices: Choices, points: Points):
  """(choice, approach, how) of other ways to fit the same points."""
  if points.curves():
    yield "envelope of curves", 1, _front(frontier.envelope)
  for within in (3.0, 12.0):
    yield (
      f"parabolas within a factor of {within:g}", 2,
      _front(lambda p, within=within: isoflop.fit(p, within=within).frontier),
    )  # fmt: skip
  for delta in (1e-4, 1e-2):
    yield f"delta {delta:g}", 3, _law(delta, choices.starts)
  yield "least squares", 3, _law(1e3, choices.starts)
  if choices.gamma:
    for counted, what in enumerate(("without", "with")):
      yield (
        f"the law at Kaplan's sizes, {what} embeddings", 3,
        _as_kaplan(choices.gamma, choices.starts, counted),
      )  # fmt: skip
  yield "mean, stopped by scipy's usual tolerance", 3, _careless


def _variants(points: Points, choices: Choices):
  """(group, choice, points, approaches) of other countings and rows."""
  every = (1, 2, 3)
  if choices.by:
    yield from _values(points, choices.by)
    if trust.data(points):  # several studies in one file: together they mean nothing
      return
  yield "as given", points.counted, points, every
  for choice, given, only in _countings(points, choices):
    yield "counting", choice, given, only
  for count in (1, 5, 10):
    if len(points) - count >= 2 * LEAST:
      yield (
        "rows",
        f"{count} highest losses dropped",
        points.without_highest(count),
        every,
      )
  halves = [
    ("FLOPs", points.c, every), ("width / depth", _aspect(points), every),
    # a range of N or D moves the frontier of approaches 1 and 2 by itself
    ("N", points.n, (3,)), ("D", points.d, (3,)),
  ]  # fmt: skip
  for name, value, only in halves:
    if value is None or len(np.unique(value)) < 8:
      continue
    middle = np.median(np.unique(value))
    for what, rows in (("smaller", value <= middle), ("larger", value > middle)):
      if rows.sum() >= 2 * LEAST:
        yield "rows", f"{what} half of {name}", points.take(rows), only


def _values(points: Points, by: str):
  """The points of each value of a column."""
  column = points.run if by == "run" else points.other.get(by)
  if column is None:
    raise unknown("column", by, [*points.other, "run"])
  values = np.unique(column)
  if len(values) > _MOST:
    raise InputError(f"--by={by} has {len(values)} values, more than {_MOST}")
  for value in values:
    given = points.take(column == value)
    if len(given) >= LEAST:
      yield "rows", f"{by} {value}", given, (1, 2, 3)


def _aspect(points: Points):
  if points.width is None or points.depth is None:
    return None
  return points.width / points.depth


def _countings(points: Points, choices: Choices):
  """(choice, points, approaches); C is 6 N D with the N that is counted."""
  six = dataclasses.replace(points, c=FLOPS * points.n * points.d)
  if not np.allclose(six.c, points.c, rtol=1e-3):
    yield "C = 6 N D", six, (1, 2)
  if points.body is not None or points.width is not None:
    for tables, choice in ((1, "without input embeddings"), (2, "without embeddings")):
      if tables == 1 and points.width is None:
        continue
      fewer = points.without_embeddings(tables, choices.vocabulary)
      yield f"{choice}, C as given", fewer, (1, 2)
      yield f"{choice}, C = 6 N D", _again(fewer), (1, 2, 3)
  elif choices.gamma:
    body = without_embeddings(points.n, choices.gamma)
    fewer = dataclasses.replace(points, n=body)
    yield "without embeddings (Pearce and Song), C = 6 N D", _again(fewer), (1, 2, 3)
  if points.width is not None and points.depth is not None:
    attention = 12 * points.depth * points.width * choices.context * points.d
    yield "C = 6 N D + attention", dataclasses.replace(six, c=six.c + attention), (1, 2)


def _again(points: Points) -> Points:
  """C = 6 N D with the points' own N; budgets are looked for again."""
  return dataclasses.replace(points, c=FLOPS * points.n * points.d, budget=None)


def without_embeddings(n: np.ndarray, gamma: float) -> np.ndarray:
  """N_E of N_T = N_E + gamma N_E^(1/3), by Newton's method on the cube root."""
  root = np.minimum(n / gamma, np.cbrt(n))  # above or at the solution's cube root
  for _ in range(60):
    root = root - (root**3 + gamma * root - n) / (3 * root**2 + gamma)
  return root**3
