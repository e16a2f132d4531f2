"""How far a fit can be trusted: standard errors and bootstrap intervals.

Standard errors come from the observed information, the second derivative of the
negative log-likelihood (with the prior's part, if there is one) at the fit. The
bootstrap fits the model again to choices that are drawn, with replacement, from the
observed ones.

Source: Efron and Tibshirani 1993, chapter 13 (percentile intervals).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft import console
from jaxpeft.errors import InputError
from jaxpeft.preference import estimation, existence
from jaxpeft.preference.estimation import Fit, Problem

_PARAMETERS = 5_000  # of a covariance matrix, which then takes 200 MB
_WORK = 2_000_000  # places of rankings that are fitted at a time
_NUMBERS = 50_000_000  # that a bootstrap returns
_LEFT_OUT = 0.1  # share of samples that may have no maximum


@dataclasses.dataclass(frozen=True, eq=False)
class Values:
  """A number for each number of a `Fit`: utilities, coefficients, tie."""

  utilities: np.ndarray
  coefficients: np.ndarray | None
  tie: float | None


@dataclasses.dataclass(frozen=True, eq=False)
class Bootstrap:
  """Intervals from bootstrap samples.

  low, high: the ends of the intervals.
  parameters: float64[samples, P], in the order of `Fit.parameters`.
  left_out: how many samples had no maximum and are not in `parameters`.
  """

  low: Values
  high: Values
  parameters: np.ndarray
  left_out: int


def covariance(fit: Fit) -> np.ndarray:
  """float64[P, P], of `Fit.parameters`: the inverse of the observed information.

  Utilities of items sum to 0, and so do the rows of their covariance.

  Raises:
    InputError: there are too many parameters.
  """
  at = fit.parameters()
  if len(at) > _PARAMETERS:
    raise InputError(
      f"{len(at):,} parameters are more than {_PARAMETERS:,} for a covariance matrix"
    )
  with console.waiting("computing standard errors"), jax.enable_x64(True):
    of = estimation.problem(fit.choices, fit.model, fit.features, fit.alpha)
    information = np.asarray(_information(of, at))
  if fit.features is not None:
    return np.linalg.inv(information)
  # In a basis of what sums to 0: the likelihood does not know the mean.
  items = fit.choices.items
  basis = np.linalg.svd(np.ones((1, items)))[2][1:]
  basis = np.pad(basis, [(0, len(at) - items)] * 2)
  basis[items - 1 :, items:] = np.eye(len(at) - items)
  return basis.T @ np.linalg.inv(basis @ information @ basis.T) @ basis


@jax.jit
def _information(of: Problem, at):
  gradient = functools.partial(jax.grad(estimation.loss), of=of)

  def column(unit):
    return jax.jvp(gradient, (at,), (unit,))[1]

  return jax.lax.map(column, jnp.eye(len(at)), batch_size=min(len(at), 32))


def standard_errors(fit: Fit) -> Values:
  """The standard errors of a fit; arguments and errors as of `covariance`."""
  cov = covariance(fit)
  first = cov[:-1, :-1] if fit.model.ties else cov
  own = np.sqrt(np.diag(first))
  tie = None if fit.tie is None else float(fit.tie * np.sqrt(cov[-1, -1]))
  if fit.features is None:
    return Values(own, None, tie)
  utilities = np.sqrt(np.einsum("if,fg,ig->i", fit.features, first, fit.features))
  return Values(utilities, own, tie)


def bootstrap(
  fit: Fit, samples: int = 1_000, level: float = 0.95, seed: int = 0
) -> Bootstrap:
  """Percentile intervals of a fit.

  A sample without a maximum (an item that never lost in it, for example) is left out.

  Args:
    fit: the fit; its counts are whole numbers.
    samples: how many.
    level: the intervals' nominal coverage.
    seed: of the draws.

  Raises:
    InputError: a count is not whole, a sample was not fitted within its steps, or more
      than a tenth of the samples has no maximum; a prior helps.
  """
  if not (0 < level < 1 and samples >= 1):
    raise InputError(f"level {level} is not between 0 and 1, or samples {samples} < 1")
  at = fit.parameters()
  if samples * len(at) > _NUMBERS:
    raise InputError(
      f"{samples:,} samples of {len(at):,} parameters are more than {_NUMBERS:,} "
      "numbers; lower samples"
    )
  choices = fit.choices
  counts = np.concatenate([choices.counts, choices.tie_counts])
  if (counts != np.round(counts)).any():
    raise InputError("the bootstrap draws choices, so their counts must be whole")
  places = choices.ranked.size + choices.tied.size
  # A power of 2, so that another number of samples compiles nothing new.
  size = max(1, min(256, 2 ** (samples - 1).bit_length(), _WORK // places))
  rng, parts, done, left_out = np.random.default_rng(seed), [], 0, 0
  with console.Bar("bootstrap", samples, "samples") as bar:
    while done < samples:
      count = min(size, samples - done)
      drawn = rng.multinomial(int(counts.sum()), counts / counts.sum(), count)
      kept = drawn[[_has_maximum(fit, row) for row in drawn]]
      done, left_out = done + count, left_out + count - len(kept)
      if left_out > _LEFT_OUT * samples:
        raise InputError(
          f"{left_out} of {done} bootstrap samples have no maximum; fit with a prior, "
          "e.g. alpha=1, or observe more"
        )
      parts.append(_refit(fit, at, kept, size))
      bar.update(count)
  found = np.concatenate(parts)
  tail = (1 - level) / 2
  low, high = (_values(fit, found, q) for q in (tail, 1 - tail))
  return Bootstrap(low, high, found, left_out)


def _has_maximum(fit: Fit, counts: np.ndarray) -> bool:
  c = fit.choices
  won, tied = np.split(counts, [len(c.counts)])
  drawn = dataclasses.replace(
    c, ranked=c.ranked[won > 0], counts=won[won > 0],
    tied=c.tied[tied > 0], tie_counts=tied[tied > 0],
  )  # fmt: skip
  return existence.reason(drawn, fit.model, fit.features, fit.alpha) is None


def _refit(fit: Fit, start: np.ndarray, counts: np.ndarray, size: int) -> np.ndarray:
  """float64[rows, P]: the parameters for each row of counts, at most `size` of them."""
  if not len(counts):
    return np.zeros((0, len(start)))
  rows = len(counts)
  counts = np.pad(counts.astype(np.float64), [(0, size - rows), (0, 0)], "edge")
  won, tied = np.split(counts, [len(fit.choices.counts)], axis=1)
  with jax.enable_x64(True):
    of = estimation.problem(fit.choices, fit.model, fit.features, fit.alpha)
    won = np.pad(won, [(0, 0), (0, len(of.counts) - won.shape[1])])
    tied = np.pad(tied, [(0, 0), (0, len(of.tie_counts) - tied.shape[1])])
    found, _, left = map(np.array, _solve_all(of, won, tied, start))
  if not left.max() <= estimation.ENOUGH:
    raise InputError(
      "a bootstrap sample was not fitted; fit with a prior, e.g. alpha=1"
    )
  if fit.features is None:
    items = fit.choices.items
    found[:, :items] -= found[:, :items].mean(1, keepdims=True)
  return found[:rows]


@jax.jit
def _solve_all(of: Problem, counts, tie_counts, start):
  def one(counts, tie_counts):
    drawn = dataclasses.replace(of, counts=counts, tie_counts=tie_counts)
    return estimation.solve(drawn, start, estimation.STEPS["lbfgs"])

  return jax.vmap(one)(counts, tie_counts)


def _values(fit: Fit, found: np.ndarray, share: float) -> Values:
  """The quantiles of what was found, number by number."""
  first = found[:, :-1] if fit.model.ties else found
  tie = float(np.exp(np.quantile(found[:, -1], share))) if fit.model.ties else None
  own = np.quantile(first, share, axis=0)
  if fit.features is None:
    return Values(own, None, tie)
  return Values(np.quantile(first @ fit.features.T, share, axis=0), own, tie)
