"""Sums over the texts of packed groups, and the pairs of texts within each group.

Axes: B rows, T tokens, S = T // 2 texts of a row (a text has two tokens or more), K
distances between the two texts of a pair.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpeft.data import preferences


class Pairs(NamedTuple):
  """All pairs of texts of the same group, by the first and better text.

  Entry [k, b, s] is the pair of text s and the text k + 1 places after it.
  """

  real: jax.Array  # bool[K, B, S]: whether there is such a pair
  share: jax.Array  # float32[K, B, S]: 1 / the number of pairs in the group; else 0


def sums(values, segment):
  """float32[B, S]: the sum of values [B, T] over each text of a row.

  Args:
    values: float32[B, T].
    segment: int32[B, T], the number of each token's text in its row, from 1; 0 is none.
  """
  size = values.shape[1] // 2 + 1
  one = lambda x, number: jax.ops.segment_sum(x, number, size)  # noqa: E731
  return jax.vmap(one)(values, segment)[:, 1:]


def at_ends(values, batch):
  """[B, S]: the values [B, T] at the ends of the texts; 0 where there is no text."""
  return sums(jnp.where(batch["end"], values, 0), batch["segment"])


def pairs(group) -> Pairs:
  """The pairs of texts whose groups are int32[B, S], 0 where there is no text."""
  most = preferences.MOST
  same = lambda k: (later(group, k) == group) & (group > 0)  # noqa: E731
  real = jnp.stack([same(k) for k in range(1, most)])
  before = jnp.stack([same(-k) for k in range(1, most)])
  texts = 1 + real.sum(0) + before.sum(0)
  share = 2 / (texts * jnp.maximum(texts - 1, 1)).astype(jnp.float32)
  return Pairs(real, jnp.where(real, share, 0))


def both(values, real, other: float = 0.0):
  """(values of the better, values of the worse) texts of pairs, [K, B, S] each.

  Args:
    values: [B, S], of texts.
    real: see `Pairs`.
    other: the value where there is no pair.
  """
  worse = jnp.stack([later(values, k + 1) for k in range(len(real))])
  return jnp.where(real, values, other), jnp.where(real, worse, other)


def later(x, k: int):
  """[B, S]: the value k places later in the row (earlier if k < 0); 0 outside."""
  if abs(k) >= x.shape[1]:
    return jnp.zeros_like(x)
  rest = jnp.zeros_like(x[:, : abs(k)])
  parts = [x[:, k:], rest] if k > 0 else [rest, x[:, :k]]
  return jnp.concatenate(parts, 1)
