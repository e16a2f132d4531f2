"""Losses of pairs of answers, as functions of their log-probabilities in nats.

For an answer y of n tokens, s(y) is log p(y) - log p_ref(y), where p_ref is the model
that training starts from; without a reference it is log p(y). c is the chosen answer, r
the rejected one, m the margin of the pair, and e the label smoothing.

  sigmoid  -(1 - e) log sigmoid(d) - e log sigmoid(-d) with d = beta (s(c) - s(r)) - m.
           Without e and m: DPO [Rafailov et al. 2023, arXiv:2305.18290]. e: cDPO
           [Mitchell 2023]. m: DPO with an offset [Amini et al. 2024, arXiv:2402.10571].
  hinge    max(0, 1 - d): SLiC's loss [Zhao et al. 2023, arXiv:2305.10425] of DPO's d.
  ipo      (s(c) / n_c - s(r) / n_r - 1 / (2 beta))^2: IPO [Azar et al. 2023,
           arXiv:2310.12036], per token, as TRL has it after asking the authors; the
           paper's equation 17 has s(c) - s(r).
  simpo    like sigmoid with d = beta (log p(c) / n_c - log p(r) / n_r) - gamma - m
           [Meng et al. 2024, arXiv:2405.14734].
  orpo     -beta log sigmoid(o(c) - o(r)), where o(y) = log(q / (1 - q)) is the log-odds
           of q = p(y)^(1/n) [Hong et al. 2024, arXiv:2403.07691]. The paper's lambda is
           beta here, and its loss has the chosen answer's mean loss as well.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

_CERTAIN = -1e-6  # a larger log-probability has no finite odds in float32


class Side(NamedTuple):
  """One answer of each pair, float32[...] each."""

  score: jax.Array  # s(y)
  tokens: jax.Array  # n

  @property
  def mean(self):
    """s(y) / n."""
    return self.score / jnp.maximum(self.tokens, 1)


class Kind(NamedTuple):
  """A loss, and what it takes."""

  of: Callable  # (options, chosen, rejected, margin) -> float32[...]
  reference: bool  # whether s(y) is relative to the reference
  options: tuple[str, ...]  # those of `Preference` that it uses, besides beta
  per_token: bool = False  # whether the answers' scores are compared per token
  margin: bool = True  # whether it uses a margin


def sigmoid(options, chosen: Side, rejected: Side, margin):
  """-log of the probability that the chosen answer is better."""
  return _logistic(_gap(options, chosen, rejected, margin), options.label_smoothing)


def hinge(options, chosen: Side, rejected: Side, margin):
  """What is missing to a gap of 1."""
  return jax.nn.relu(1 - _gap(options, chosen, rejected, margin))


def ipo(options, chosen: Side, rejected: Side, margin):
  """The squared distance of the gap per token from 1 / (2 beta)."""
  del margin
  return jnp.square(chosen.mean - rejected.mean - 1 / (2 * options.beta))


def simpo(options, chosen: Side, rejected: Side, margin):
  """-log of the probability that the chosen answer is better by gamma, per token."""
  gap = options.beta * (chosen.mean - rejected.mean) - options.gamma - margin
  return _logistic(gap, options.label_smoothing)


def orpo(options, chosen: Side, rejected: Side, margin):
  """-beta log sigmoid of the logarithm of the odds ratio, per token."""
  del margin
  gap = log_odds(chosen.mean) - log_odds(rejected.mean)
  return -options.beta * jax.nn.log_sigmoid(gap)


KINDS = {
  "sigmoid": Kind(sigmoid, True, ("label_smoothing", "nll", "reference_free")),
  "hinge": Kind(hinge, True, ("nll", "reference_free")),
  "ipo": Kind(ipo, True, ("nll", "reference_free"), margin=False),
  "orpo": Kind(orpo, False, (), per_token=True, margin=False),
  "simpo": Kind(simpo, False, ("label_smoothing", "nll", "gamma"), per_token=True),
}


def log_odds(logp):
  """log(q / (1 - q)) of q = exp(logp), for logp below 0.

  Source of the two branches: Maechler 2012, "Accurately computing log(1 - exp(-|a|))".
  """
  logp = jnp.minimum(logp, _CERTAIN)
  small = logp < -0.6931471805599453  # q < 1/2
  far, near = jnp.where(small, logp, -1.0), jnp.where(small, -1.0, logp)
  rest = jnp.where(small, jnp.log1p(-jnp.exp(far)), jnp.log(-jnp.expm1(near)))
  return logp - rest


def _gap(options, chosen: Side, rejected: Side, margin):
  return options.beta * (chosen.score - rejected.score) - margin


def _logistic(gap, smoothing: float):
  """-log sigmoid(gap), where a share of the pairs may be the wrong way round."""
  loss = -jax.nn.log_sigmoid(gap)
  if not smoothing:
    return loss
  return (1 - smoothing) * loss - smoothing * jax.nn.log_sigmoid(-gap)
