"""Softmax attention by blocks of queries, with a backward pass that stores no scores.

Between forward and backward only queries, keys, values, the output and one number per
query are kept; scores of one block of queries at a time are formed, and formed again.
Source: Rabe and Staats 2021; Dao et al. 2022 (without their tiles over keys).
Axes: B batch, T queries, S keys of all parts, K key/value heads, G query heads of each,
N head_dim.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

EVERYWHERE = 1 << 30  # a window that no position leaves
_MASKED = -2.0e38  # finite: a row without any key must not become NaN
_BLOCK, _BLOCKS = 64, 8  # least queries in a block, most blocks


class Where(NamedTuple):
  """Where tokens stand: int32 [B, T] each. Tokens see earlier ones of their segment."""

  position: jax.Array
  segment: jax.Array  # 0 is padding: seen by nothing


class KV(NamedTuple):
  """Keys and values of some tokens: of x itself, of a cache, of another stream."""

  k: jax.Array  # [B, K, S, N], rotated
  v: jax.Array  # [B, K, S, N]
  where: Where  # [B, S]


def attend(q, where: Where, parts: list[KV], window, scale: float, cap: float | None):
  """Attention of queries over several sets of keys, which are never concatenated.

  Args:
    q: [B, K, G, T, N], rotated.
    where: of the queries.
    parts: the first is of the queries' own tokens, in their order: a block of queries
      does not look at later ones. The others may stand anywhere.
    window: int32[], how many positions back a query sees, itself included.
    scale: of the scores.
    cap: scores become cap * tanh(score / cap); None is off.
  Returns:
    [B, K, G, T, N] in q's dtype.
  """
  kv = tuple((part.k, part.v) for part in parts)
  places = (where, tuple(part.where for part in parts), window)
  return _attend(scale, cap, q, kv, places)


def visible(query: Where, key: Where, window):
  """bool[B, T, S]: same segment, not later, inside the window, and not padding."""
  back = query.position[:, :, None] - key.position[:, None, :]
  same = query.segment[:, :, None] == key.segment[:, None, :]
  return same & (back >= 0) & (back < window) & (key.segment != 0)[:, None, :]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(scale, cap, q, kv, places):
  return _forward(scale, cap, q, kv, places)[0]


def _forward(scale, cap, q, kv, places):
  outs, lses = [], []
  for rows in _blocks(q.shape[3]):
    qi, kvi, seen = _slice(q, kv, places, rows)
    s, _ = _scores(scale, cap, qi, kvi, seen)
    top = s.max(-1, keepdims=True)
    p = jnp.exp(s - top)
    total = p.sum(-1, keepdims=True)
    # Dividing the [T, N] sums instead of the [T, S] weights is the same, and cheaper.
    outs.append((_split_sum(_weigh, p, [v for _, v in kvi]) / total).astype(q.dtype))
    lses.append(top + jnp.log(total))
  out = checkpoint_name(jnp.concatenate(outs, 3), "product")
  lse = checkpoint_name(jnp.concatenate(lses, 3), "product")
  return out, (q, kv, places, out, lse)


def _backward(scale, cap, residuals, g):
  q, kv, places, out, lse = residuals
  delta = jnp.sum(g.astype(jnp.float32) * out, -1, keepdims=True)
  dqs = []
  dkv = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), kv)
  for rows in _blocks(q.shape[3]):
    qi, kvi, seen = _slice(q, kv, places, rows)
    gi = g[:, :, :, rows]
    s, slope = _scores(scale, cap, qi, kvi, seen)
    p = jnp.exp(s - lse[:, :, :, rows])
    dp = jnp.concatenate([_dot(gi, v) for _, v in kvi], -1)
    ds = (p * (dp - delta[:, :, :, rows]) * slope).astype(q.dtype)
    dqs.append(_split_sum(_weigh, ds, [k for k, _ in kvi]) * scale)
    new, at = [], 0
    for (dk, dv), (k, _) in zip(dkv, kvi, strict=True):
      n = k.shape[2]
      here = slice(at, at + n)
      dk = dk.at[:, :, :n].add(_collect(ds[..., here], qi) * scale)
      dv = dv.at[:, :, :n].add(_collect(p[..., here].astype(g.dtype), gi))
      new.append((dk, dv))
      at += n
    dkv = tuple(new)
  dq = jnp.concatenate(dqs, 3).astype(q.dtype)
  dkv = jax.tree.map(lambda d, x: d.astype(x.dtype), dkv, kv)
  return dq, dkv, jax.tree.map(lambda _: None, places)


_attend.defvjp(_forward, _backward)


def _blocks(t: int) -> list[slice]:
  size = max(_BLOCK, math.ceil(t / _BLOCKS))
  return [slice(i, min(i + size, t)) for i in range(0, t, size)]


def _slice(q, kv, places, rows: slice):
  """A block's queries, the keys that it may see, and which it does: bool [B, T, S]."""
  where, keys, window = places
  end = rows.stop
  kv = ((kv[0][0][:, :, :end], kv[0][1][:, :, :end]), *kv[1:])
  keys = (jax.tree.map(lambda x: x[:, :end], keys[0]), *keys[1:])
  where = jax.tree.map(lambda x: x[:, rows], where)
  seen = jnp.concatenate([visible(where, key, window) for key in keys], -1)
  return q[:, :, :, rows], kv, seen


def _scores(scale, cap, q, kv, seen):
  """(scores, d scores / d products), float32 [B, K, G, T, S], masked ones at -2e38."""
  s = jnp.concatenate([_dot(q, k) for k, _ in kv], -1) * scale
  slope = 1.0
  if cap is not None:
    s = cap * jnp.tanh(s / cap)
    slope = 1 - jnp.square(s / cap)
  return s + jnp.where(seen, 0.0, _MASKED)[:, None, None], slope


def _split_sum(f, s, xs):
  """Sum of f(s_i, x_i) over the parts x_i [B, K, S_i, N], s cut along its last axis."""
  total, at = 0, 0
  for x in xs:
    total += f(s[..., at : at + x.shape[2]], x)
    at += x.shape[2]
  return total


# The three products, each one batched matrix product over B and K.


def _dot(q, k):
  """[B, K, G, T, N], [B, K, S, N] -> float32[B, K, G, T, S]."""
  return _product("bkqn,bksn->bkqs", q, k)


def _weigh(s, v):
  """[B, K, G, T, S], [B, K, S, N] -> float32[B, K, G, T, N]."""
  return _product("bkqs,bksn->bkqn", s.astype(v.dtype), v)


def _collect(s, q):
  """[B, K, G, T, S], [B, K, G, T, N] -> float32[B, K, S, N]."""
  b, k, _, _, n = q.shape
  return jnp.einsum(
    "bkqs,bkqn->bksn",
    s.reshape(b, k, -1, s.shape[-1]),
    q.reshape(b, k, -1, n),
    preferred_element_type=jnp.float32,
  )


def _product(spec, x, y):
  b, k, g, t, _ = x.shape
  out = jnp.einsum(
    spec, x.reshape(b, k, g * t, -1), y, preferred_element_type=jnp.float32
  )
  return out.reshape(b, k, g, t, -1)
