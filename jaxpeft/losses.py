"""Losses, in nats, in float32."""

import jax
import jax.numpy as jnp


def cross_entropy(logits, targets, weights):
  """Weighted sum of -log p(target), and the sum of the weights.

  Sums, not a mean: gradients of microbatches and devices add up to that of the whole.

  Args:
    logits: float[B, T, V].
    targets: int[B, T].
    weights: float[B, T]; 0 where a token is not supervised.
  Returns:
    (float32[], float32[]).
  """
  logits = logits.astype(jnp.float32)
  picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  loss = jax.nn.logsumexp(logits, axis=-1) - picked
  return jnp.sum(loss * weights), jnp.sum(weights)
