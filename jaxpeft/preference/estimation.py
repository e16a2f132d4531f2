"""Maximum likelihood: what utilities make the observed choices most likely.

The parameters are a utility for each item, or a coefficient for each feature, and the
logarithm of the tie parameter. Utilities of items are only known up to a constant, and
sum to 0. With a prior, the fit maximizes

  sum of counts * log-probability - alpha / 2 * sum of squares

of the utilities, or of the coefficients; the tie parameter has no prior. So the prior
is normal with variance 1 / alpha. (choix subtracts alpha * sum of squares: its alpha is
half of this one. The `alpha` of its MM is another prior, a gamma distribution.)

Sources: Hunter 2004 (MM); Liu and Nocedal 1989 (L-BFGS); Caron and Doucet 2012.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpeft import console
from jaxpeft.errors import InputError, unknown
from jaxpeft.preference import existence, mm, models
from jaxpeft.preference.choices import Choices
from jaxpeft.preference.models import Model

TOLERANCE = 1e-10  # of the mean log-likelihood's gradient, where the fit stops
ENOUGH = 1e-7  # what is accepted if rounding ends it before
STEPS = {"lbfgs": 1_000, "mm": 50_000}


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
  """A fitted model, with what it was fitted to.

  utilities: float64[I]; they sum to 0 without features.
  coefficients: float64[F] with features, so that utilities = features @ coefficients.
  tie: nu of Davidson, or tau, of a model with ties.
  log_likelihood: sum of counts * log-probability, in nats, without the prior.
  steps: how many the fit took.
  """

  choices: Choices
  model: Model
  features: np.ndarray | None
  alpha: float
  utilities: np.ndarray
  coefficients: np.ndarray | None
  tie: float | None
  log_likelihood: float
  steps: int

  def parameters(self) -> np.ndarray:
    """float64[P]: utilities or coefficients, and the log of `tie` if there is one."""
    first = self.utilities if self.coefficients is None else self.coefficients
    return np.append(first, [] if self.tie is None else np.log(self.tie))


def fit(
  choices: Choices,
  model: Model = models.BRADLEY_TERRY,
  features=None,
  alpha: float = 0.0,
  method: str = "lbfgs",
  steps: int | None = None,
) -> Fit:
  """Fits a model by maximum likelihood.

  Args:
    choices: what was observed.
    model: a random utility model.
    features: float[I, F], of each item; then utilities are linear in them, without a
      constant.
    alpha: the precision of a normal prior around 0; 0 for none. See above.
    method: "lbfgs", or "mm" for Bradley-Terry and Plackett-Luce without features and
      prior. MM needs no step sizes and no line search, but many more steps.
    steps: the limit of steps; by default 1,000 of "lbfgs" and 50,000 of "mm".

  Raises:
    InputError: the likelihood has no maximum, the model does not belong to the choices,
      or the limit of steps was reached.
  """
  features = _checked(choices, model, features, alpha, method)
  steps = STEPS[method] if steps is None else steps
  if steps < 1:
    raise InputError(f"steps is {steps}, not a number from 1")
  why = existence.reason(choices, model, features, alpha)
  if why:
    prior = "" if alpha else ", or give a prior, e.g. alpha=1"
    raise InputError(f"the likelihood has no maximum: {why}. Observe more{prior}")
  count = choices.items if features is None else features.shape[1]
  start = np.zeros(count + bool(model.ties))
  with console.waiting("fitting"), jax.enable_x64(True):
    of = problem(choices, model, features, alpha)
    found, taken, left = (
      mm.solve(of.ranked, of.counts, choices.items, steps)
      if method == "mm"
      else solve(of, start, steps)
    )
    found, taken, left = np.asarray(found), int(taken), float(left)
  if not left <= (ENOUGH if method == "lbfgs" else 1e-9):
    raise InputError(
      f"the fit did not end within {steps:,} steps of {method!r}; raise steps"
      + ("" if alpha else ", or give a prior, e.g. alpha=1")
    )
  return _fit(choices, model, features, alpha, found, taken)


def _checked(choices, model, features, alpha, method) -> np.ndarray | None:
  """The features as float64[I, F]; raises InputError for what does not fit together."""
  if method not in STEPS:
    raise unknown("method", method, STEPS)
  if not (isinstance(alpha, int | float) and 0 <= alpha < np.inf):
    raise InputError(f"alpha is {alpha!r}, not a number from 0")
  longest = choices.ranked.shape[1]
  if longest > 2 and model != models.PLACKETT_LUCE:
    raise InputError(f"rankings of {longest} items need Model(), not {model}")
  if len(choices.tied) and not model.ties:
    raise InputError(
      f"{choices.tie_counts.sum():g} ties were observed, but the model has none; take "
      "one with ties, e.g. DAVIDSON, or leave them out"
    )
  plain = model == models.BRADLEY_TERRY and features is None and not alpha
  if method == "mm" and not plain:
    raise InputError(
      "method 'mm' fits Model() without features and prior; take method='lbfgs'"
    )
  if features is None:
    return None
  features = np.asarray(features, np.float64)
  if features.ndim != 2 or len(features) != choices.items or not features.shape[1]:
    raise InputError(
      f"features have the shape {features.shape}, not [{choices.items} items, features]"
    )
  if not np.isfinite(features).all():
    item, at = np.argwhere(~np.isfinite(features))[0]
    raise InputError(f"feature {at} of item {choices.name(int(item))} is not finite")
  return features


def _fit(choices, model, features, alpha, found: np.ndarray, taken: int) -> Fit:
  first = found[:-1] if model.ties else found
  with jax.enable_x64(True):
    loss = _loss(jnp.asarray(found), problem(choices, model, features, 0.0))
  return Fit(
    choices=choices, model=model, features=features, alpha=float(alpha),
    utilities=first - first.mean() if features is None else features @ first,
    coefficients=None if features is None else first,
    tie=float(np.exp(found[-1])) if model.ties else None,
    log_likelihood=-float(loss), steps=taken,
  )  # fmt: skip


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
  """What a fit minimizes, as arrays: see `Choices` and `fit`."""

  ranked: jax.Array
  counts: jax.Array
  tied: jax.Array
  tie_counts: jax.Array
  features: jax.Array | None
  alpha: jax.Array
  model: Model = dataclasses.field(metadata=dict(static=True))


def problem(choices: Choices, model: Model, features, alpha: float) -> Problem:
  """A fit's arrays. Call it, and what takes it, in `jax.enable_x64(True)`.

  Rows that never occurred fill them up, so that choices of about as many rows compile
  nothing new.
  """
  if features is not None:  # only differences matter, and these have less rounding
    features = jnp.asarray(features - features.mean(0))
  return Problem(
    ranked=jnp.asarray(filled(choices.ranked)),
    counts=jnp.asarray(filled(choices.counts)),
    tied=jnp.asarray(filled(choices.tied)),
    tie_counts=jnp.asarray(filled(choices.tie_counts)),
    features=features, alpha=jnp.asarray(alpha, jnp.float64), model=model,
  )  # fmt: skip


def filled(rows: np.ndarray) -> np.ndarray:
  """Rows of items, or counts, with rows (0, 1), or zeros, behind them."""
  count = len(rows)
  step = min(1024, 2 ** max(4, (count - 1).bit_length()))
  more = -count % step if count else 0
  row = np.zeros((more, *rows.shape[1:]), rows.dtype)
  if rows.ndim == 2:
    row[:, 1:] = -1
    row[:, 1] = 1
  return np.concatenate([rows, row])


def _loss(parameters, of: Problem):
  """Negative log-likelihood of all choices, and the prior's part, in nats."""
  first = parameters[:-1] if of.model.ties else parameters
  log_tie = parameters[-1] if of.model.ties else jnp.zeros(())
  utilities = first if of.features is None else of.features @ first
  won, tied = models.log_chances(of.model, utilities, log_tie, of.ranked, of.tied)
  likely = (of.counts * won).sum()
  if of.model.ties:
    likely += (of.tie_counts * tied).sum()
  return of.alpha / 2 * (first**2).sum() - likely


loss = jax.jit(_loss)


@jax.jit
def solve(of: Problem, start, steps):
  """(parameters, steps taken, largest part of the gradient left), by L-BFGS.

  It works on coefficients of features with standard deviation 1, on which L-BFGS needs
  few steps, and on the mean over choices. Can be mapped over `of.counts`.
  """
  scale = _scale(of, start)
  total = of.counts.sum() + of.tie_counts.sum()

  def value(x):
    return _loss(x / scale, of) / total

  # Enough for a convex loss, and a smaller program than the default's zoom. The
  # tolerance accepts the last steps, whose gain is below float64's rounding.
  search = optax.scale_by_backtracking_linesearch(30, store_grad=True, rtol=1e-13)
  optimizer = optax.lbfgs(memory_size=20, linesearch=search)
  both = optax.value_and_grad_from_state(value)

  def step(carry):
    x, state, taken = carry
    now, gradient = both(x, state=state)
    update, state = optimizer.update(
      gradient, state, x, value=now, grad=gradient, value_fn=value
    )
    return x + update, state, taken + 1

  def goes_on(carry):
    _, state, taken = carry
    # Before the first step, the state has zeros for the gradient.
    return (taken < steps) & ((taken == 0) | (_largest(state) > TOLERANCE))

  begin = jnp.asarray(start) * scale
  x, state, taken = jax.lax.while_loop(goes_on, step, (begin, optimizer.init(begin), 0))
  return x / scale, taken, _largest(state)


def _largest(state):
  return jnp.abs(optax.tree.get(state, "grad")).max()


def _scale(of: Problem, start):
  """float64[P]: the features' standard deviations, and 1 for other parameters."""
  if of.features is None:
    return jnp.ones(len(start))
  scale = of.features.std(0)
  scale = jnp.where(scale > 0, scale, 1.0)
  return jnp.ones(len(start)).at[: len(scale)].set(scale)
