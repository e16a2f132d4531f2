"""Applies a per-token function to a few tokens at a time, to hold fewer activations.

Every chunk contains all rows, so that a mesh can still shard the rows.
Axes: B rows, T tokens, t tokens of a chunk.
"""

import math

import jax
import jax.numpy as jnp


def over_tokens(f, count: int, *xs):
  """f(*xs), computed in at least `count` chunks of tokens.

  The backward pass recomputes each chunk.

  Args:
    f: function of arrays [B, t, ...], independent across tokens, to an array
      [B, t, ...].
    count: the fewest chunks.
    *xs: arrays [B, T, ...].
  Returns:
    [B, T, ...].
  """
  b, t = xs[0].shape[:2]
  count = pieces(t, count)
  if count == 1:
    return f(*xs)
  size = math.ceil(t / count)

  def cut(x):
    x = jnp.pad(x, [(0, 0), (0, count * size - t)] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(b, count, size, *x.shape[2:]).swapaxes(0, 1)

  def one(chunk):
    return f(*chunk)

  y = jax.lax.map(jax.checkpoint(one, prevent_cse=False), tuple(map(cut, xs)))
  return y.swapaxes(0, 1).reshape(b, count * size, *y.shape[3:])[:, :t]


def pieces(t: int, least: int) -> int:
  """Number of chunks for t tokens: `least`, or up to twice that if it divides t."""
  least = min(max(least, 1), t)
  return next((n for n in range(least, 2 * least) if t % n == 0), least)
