"""Cross-entropy over large vocabularies, in nats, computed in float32.

Axes: B batch, T tokens, D width, V vocabulary.
"""

import math

import jax
import jax.numpy as jnp

from jaxpeft.parallel import sharding
from jaxpeft.transformer import chunking

_NUMBERS = 2**23  # most logits held at once: 32 MiB in float32


def cross_entropy(to_logits, hidden, targets, weights):
  """(weighted sum of -log p(target), sum of the weights).

  It returns sums rather than a mean, so that the sums, and the gradients, of
  microbatches and devices add up to those of the whole batch.

  Args:
    to_logits, hidden, targets: as in `of_tokens`.
    weights: float[B, T], 0 for tokens that are not supervised.
  Returns:
    (float32[], float32[]).
  """
  losses = of_tokens(to_logits, hidden, targets)
  return jnp.sum(losses * weights), jnp.sum(weights)


def of_tokens(to_logits, hidden, targets):
  """Each token's -log p(target), float32[B, T], without holding all logits.

  If the logits exceed 32 MiB, they are computed and scored in chunks of tokens, and
  recomputed in the backward pass, so that no float32[B, T, V] ever exists.

  Args:
    to_logits: function of hidden states, float[..., D] -> float32[..., V].
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
  """Bytes of the logits that one device holds at once; for planning."""
  if not tokens:
    return 0
  return (
    4
    * rows
    * vocab
    * math.ceil(tokens / chunking.pieces(tokens, _least(rows * tokens * vocab)))
  )


def _least(numbers: float) -> int:
  """The fewest chunks that keep each chunk of so many logits within `_NUMBERS`."""
  return math.ceil(numbers / _NUMBERS)


def _losses(logits, targets):
  logits = logits.astype(jnp.float32)
  if sharding.cut("vocab") == 1:
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  else:  # each device searches its own shard of the vocabulary
    here = jnp.arange(logits.shape[-1]) == targets[..., None]
    picked = jnp.where(here, logits, 0).sum(-1)
  return jax.nn.logsumexp(logits, axis=-1) - picked
