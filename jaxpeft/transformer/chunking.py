"""Functions of many tokens, computed some tokens at a time to hold less at once.

Rows are whole in every chunk, so that a mesh may cut them. Axes: B rows, T tokens.
"""

import math

import jax
import jax.numpy as jnp


def over_tokens(f, count: int, *xs):
  """f(*xs), for f: arrays [B, t, ...] -> array [B, t, ...], in `count` or more chunks.

  The backward pass computes each chunk again.
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
  """In how many pieces to cut t tokens: `least`, or a few more if none is cut short."""
  least = min(max(least, 1), t)
  return next((n for n in range(least, 2 * least) if t % n == 0), least)
