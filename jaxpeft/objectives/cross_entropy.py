"""Losses, in nats, in float32."""

import math

import jax
import jax.numpy as jnp

from jaxpeft.parallel import sharding
from jaxpeft.transformer import chunking

_NUMBERS = 2**23  # of logits at a time: 32 MiB in float32


def cross_entropy(to_logits, hidden, targets, weights):
  """Weighted sum of -log p(target), and the sum of the weights.

  Sums, not a mean: gradients of microbatches and devices add up to that of the whole.

  Args:
    to_logits, hidden, targets: see `of_tokens`.
    weights: float[B, T]; 0 where a token is not supervised.
  Returns:
    (float32[], float32[]).
  """
  losses = of_tokens(to_logits, hidden, targets)
  return jnp.sum(losses * weights), jnp.sum(weights)


def of_tokens(to_logits, hidden, targets):
  """Each token's -log p(target), float32[B, T], from hidden states.

  Where all logits are more than 32 MiB, those of a chunk are computed, scored and
  dropped, and computed again in the backward pass: no float32[B, T, V] exists.

  Args:
    to_logits: hidden float[..., D] -> float32[..., V].
    hidden: float[B, T, D].
    targets: int[B, T].
  """
  vocab = jax.eval_shape(to_logits, hidden).shape[-1]
  hidden = sharding.constrain(hidden, "batch", None, None)
  return chunking.over_tokens(
    lambda hidden, targets: _losses(to_logits(hidden), targets),
    _least(targets.size * vocab / sharding.cut("batch", "vocab")), hidden, targets,
  )  # fmt: skip


def chunk_bytes(rows: int, tokens: int, vocab: int) -> int:
  """Of the logits that exist at a time, on one device."""
  return (
    4
    * rows
    * vocab
    * math.ceil(tokens / chunking.pieces(tokens, _least(rows * tokens * vocab)))
  )


def _least(numbers: float) -> int:
  return math.ceil(numbers / _NUMBERS)


def _losses(logits, targets):
  logits = logits.astype(jnp.float32)
  if sharding.cut("vocab") == 1:
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  else:  # each device looks among its own part of the vocabulary
    here = jnp.arange(logits.shape[-1]) == targets[..., None]
    picked = jnp.where(here, logits, 0).sum(-1)
  return jax.nn.logsumexp(logits, axis=-1) - picked
