"""Random utility models and their probabilities.

A chooser sees U_i = r_i + e_i with noise e, and prefers i to j where U_i > U_j. With
d = r_i - r_j, s(x) = 1 / (1 + exp(-x)) and the normal distribution function Phi:

  noise    ties         P(i before j)                 P(neither)
  gumbel                s(d)                          0
  gumbel   davidson     exp(d/2) / z                  nu / z
  gumbel   rao_kupper   s(d - tau)                    s(d + tau) - s(d - tau)
  normal                Phi(d / sqrt 2)               0
  normal   glenn_david  Phi((d - tau) / sqrt 2)       the difference, as above

with z = exp(d/2) + exp(-d/2) + nu. Gumbel noise has the distribution function
exp(-exp(-x)), and the difference of two is logistic. Normal noise has variance 1 for
each item, so that the difference has variance 2. In the models with tau, the chooser
prefers none where |U_i - U_j| < tau; Rao and Kupper's theta is exp(tau). Davidson's
nu has no such story, but P(neither)^2 = nu^2 P(i before j) P(j before i).

With Gumbel noise, a ranking of K items has the probability
prod_k exp(r_k) / (exp(r_k) + ... + exp(r_K)): one choice after the other.

Sources: Bradley and Terry 1952; Luce 1959; Plackett 1975; Thurstone 1927; Davidson
1970; Rao and Kupper 1967; Glenn and David 1960.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special

from jaxpeft.errors import InputError, unknown


@dataclasses.dataclass(frozen=True)
class Model:
  """A random utility model.

  noise: "gumbel" or "normal".
  ties: "" for a chooser who always chooses; "davidson" or "rao_kupper" with Gumbel
    noise, "glenn_david" with normal noise.

  Raises:
    InputError: there is no such model.
  """

  noise: str = "gumbel"
  ties: str = ""

  def __post_init__(self):
    if self.noise not in ("gumbel", "normal"):
      raise unknown("noise", self.noise, ("gumbel", "normal"))
    known = [ties for noise, ties in _PAIRS if noise == self.noise]
    if self.ties not in known:
      raise unknown(f"model of ties with {self.noise} noise", self.ties, known)


class Chances(NamedTuple):
  """Probabilities that the first wins, that neither does, and that the second wins.

  Each is float64[n].
  """

  win: np.ndarray
  tie: np.ndarray
  loss: np.ndarray


def chances(model: Model, utilities, shown, tie: float | None = None) -> Chances:
  """Probabilities of the outcomes of pairs.

  Args:
    model: the model.
    utilities: float[I].
    shown: int[n, 2], the first and the second item.
    tie: nu of Davidson, or tau, positive; only for a model with ties.

  Raises:
    InputError: `tie` and the model do not belong together, or an item is not there.
  """
  utilities, shown = np.asarray(utilities, np.float64), np.asarray(shown)
  check_shown(model, utilities, shown, tie)
  with jax.enable_x64(True):
    difference = jnp.asarray(utilities[shown[:, 0]] - utilities[shown[:, 1]])
    log_tie = jnp.float64(0.0 if tie is None else math.log(tie))
    win, neither = pair_logs(model, difference, log_tie)
    loss, _ = pair_logs(model, -difference, log_tie)
    return Chances(*(np.exp(np.asarray(x)) for x in (win, neither, loss)))


def check_shown(model: Model, utilities: np.ndarray, shown: np.ndarray, tie):
  """Raises InputError unless `chances` is defined for pairs that are shown."""
  if model.ties and not (tie is not None and 0 < tie < math.inf):
    raise InputError(f"a model of ties {model.ties!r} needs tie > 0, not {tie!r}")
  if not model.ties and tie is not None:
    raise InputError(f"tie is {tie!r}, but the model has no ties: Model(ties=...)")
  if utilities.ndim != 1 or not np.isfinite(utilities).all():
    raise InputError("utilities are not one finite number per item")
  if shown.ndim != 2 or shown.shape[1] != 2 or shown.dtype.kind not in "iu":
    raise InputError(f"shown items have the shape {shown.shape}, not [n, 2] of numbers")
  if shown.size and not (0 <= shown.min() and shown.max() < len(utilities)):
    raise InputError(f"shown items are not all from 0 to {len(utilities) - 1}")


def log_chances(model: Model, utilities, log_tie, ranked, tied):
  """(float[N], float[M]): log-probabilities of rankings and of ties.

  Args:
    model: the model; one with normal noise or ties takes K = 2 only.
    utilities: float[I].
    log_tie: float[], the logarithm of nu or tau.
    ranked: int[N, K], best first, -1 behind the last; tied: int[M, 2].
  """
  if ranked.shape[1] > 2:
    return _plackett_luce(utilities, ranked), jnp.zeros(len(tied))
  won = utilities[ranked[:, 0]] - utilities[ranked[:, 1]]
  even = utilities[tied[:, 0]] - utilities[tied[:, 1]]
  return pair_logs(model, won, log_tie)[0], pair_logs(model, even, log_tie)[1]


def pair_logs(model: Model, difference, log_tie):
  """(log P(first before second), log P(neither)) of differences r_i - r_j."""
  return _PAIRS[model.noise, model.ties](difference, log_tie)


def _plackett_luce(utilities, ranked):
  there = ranked >= 0
  # Finite, so that gradients of what is masked are zeros and not NaN.
  r = jnp.where(there, utilities[ranked], -1e9)
  rest = jax.lax.cumlogsumexp(r, axis=1, reverse=True)  # of this place and those behind
  return jnp.where(there, r - rest, 0.0).sum(1)


def _logistic(d, _):
  return jax.nn.log_sigmoid(d), jnp.full_like(d, -jnp.inf)


def _davidson(d, log_nu):
  log_nu = jnp.broadcast_to(log_nu, d.shape)
  z = special.logsumexp(jnp.stack([d / 2, -d / 2, log_nu]), axis=0)
  return d / 2 - z, log_nu - z


def _rao_kupper(d, log_tau):
  tau = jnp.exp(log_tau)
  win, loss = jax.nn.log_sigmoid(d - tau), jax.nn.log_sigmoid(-d - tau)
  # s(d + tau) - s(d - tau) = (exp(2 tau) - 1) s(d - tau) s(-d - tau)
  return win, 2 * tau + jnp.log(-jnp.expm1(-2 * tau)) + win + loss


def _normal(d, _):
  return special.log_ndtr(d / math.sqrt(2)), jnp.full_like(d, -jnp.inf)


def _glenn_david(d, log_tau):
  low, high = (
    (d - jnp.exp(log_tau)) / math.sqrt(2),
    (d + jnp.exp(log_tau)) / math.sqrt(2),
  )
  # In the left tail, where the two differ by more than float64's rounding.
  low_left = special.log_ndtr(jnp.where(d > 0, -high, low))
  high_left = special.log_ndtr(jnp.where(d > 0, -low, high))
  tie = high_left + jnp.log(-jnp.expm1(low_left - high_left))
  return special.log_ndtr(low), tie


_PAIRS = {
  ("gumbel", ""): _logistic,
  ("gumbel", "davidson"): _davidson,
  ("gumbel", "rao_kupper"): _rao_kupper,
  ("normal", ""): _normal,
  ("normal", "glenn_david"): _glenn_david,
}

BRADLEY_TERRY = PLACKETT_LUCE = Model()
THURSTONE = Model("normal")
DAVIDSON = Model(ties="davidson")
RAO_KUPPER = Model(ties="rao_kupper")
GLENN_DAVID = Model("normal", "glenn_david")
