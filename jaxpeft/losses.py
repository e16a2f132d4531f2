"""Losses, in nats, in float32."""

import jax
import jax.numpy as jnp

_NUMBERS = 2**23  # of logits at a time: 32 MiB in float32


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
  return jnp.sum(_losses(logits, targets) * weights), jnp.sum(weights)


def chunked(to_logits, hidden, targets, weights):
  """`cross_entropy` from hidden states; see `of_tokens`."""
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
  tokens, size = targets.size, max(1, _NUMBERS // vocab)
  if tokens <= size:
    return _losses(to_logits(hidden), targets)

  def split(x, tail):
    flat = x.reshape(tokens, *tail)
    padding = [(0, -tokens % size)] + [(0, 0)] * len(tail)
    return jnp.pad(flat, padding).reshape(-1, size, *tail)

  @jax.checkpoint
  def one(chunk):
    return _losses(to_logits(chunk[0]), chunk[1])

  losses = jax.lax.map(one, (split(hidden, hidden.shape[-1:]), split(targets, ())))
  return losses.reshape(-1)[:tokens].reshape(targets.shape)


def _losses(logits, targets):
  logits = logits.astype(jnp.float32)
  picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return jax.nn.logsumexp(logits, axis=-1) - picked
