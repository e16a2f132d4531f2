"""Softmax attention over blocks of queries, which never stores the [T, S] scores.

The forward pass computes the scores of one block of queries at a time and saves only
the queries, keys, values, output and one number per query (the log of the softmax's
denominator). The backward pass recomputes the scores block by block from these.
We do not call `jax.nn.dot_product_attention` (cuDNN): it supports neither packed
segments nor arbitrary token positions, and the mask that would express them is itself
an array [T, S], which is what this module avoids.
Source: Rabe and Staats 2021; Dao et al. 2022 (without their tiling over keys).
Axes: B batch, T queries, S keys of all parts together, K key/value heads, G query heads
per key/value head, N head_dim.
"""

import functools
import math
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxpeft.parallel import sharding
from jaxpeft.transformer.chunking import pieces

EVERYWHERE = 1 << 30  # a window larger than any sequence: no limit
_MASKED = -2.0e38  # not -inf: a query that sees no key would become NaN
_LEAST = 64  # fewest queries in a part of `_quarters`
_NUMBERS = 2**22  # most scores held at once: 16 MiB in float32


class Where(NamedTuple):
  """Positions and segments of tokens, int32[B, T] each.

  A token attends to itself and to earlier positions of its own segment.
  """

  position: jax.Array
  segment: jax.Array  # 0 marks padding, which no token attends to


class KV(NamedTuple):
  """Keys and values of a set of tokens: the layer's own input, a cache, or a stream."""

  k: jax.Array  # [B, K, S, N], with rotary embedding applied
  v: jax.Array  # [B, K, S, N]
  where: Where  # [B, S]


def attend(
  q, where: Where, parts: list[KV], window, scale: float, cap: float | None
) -> jax.Array:
  """Softmax attention of queries over several sets of keys, without concatenating them.

  Args:
    q: [B, K, G, T, N], with rotary embedding applied.
    where: positions and segments of the queries.
    parts: the sets of keys and values. The first belongs to the same tokens as the
      queries, in the same order, so that a block of queries can skip the keys after
      its end. The others may have any positions.
    window: int32[], how many positions a query sees, counting its own.
    scale: factor on the scores.
    cap: soft cap: scores become cap * tanh(score / cap). None disables it.
  Returns:
    [B, K, G, T, N] in q's dtype.
  """
  kv = tuple((part.k, part.v) for part in parts)
  places = (where, tuple(part.where for part in parts), window)
  return cast(jax.Array, _attend(scale, cap, q, kv, places))


def received(q, kv: KV, window, scale: float, cap: float | None):
  """Attention that each token receives, averaged over the queries that can see it.

  It is an average because a sum would favor the first tokens, which more queries can
  see. Over the heads it is a sum.

  Args:
    q: [B, K, G, T, N], queries of the same tokens as kv, with rotary embedding applied.
    kv: keys and values [B, K, T, N].
    window, scale, cap: as in `attend`.
  Returns:
    float32[B, T].
  """

  def block(total, item):
    qi, whereis = item
    seen = _seen(whereis, (kv.where,), window) & (whereis.segment != 0)[:, :, None]
    p = jax.nn.softmax(_scores(scale, cap, qi, kvi, seen)[0]) * seen[:, None, None]
    return (total[0] + p.sum((1, 2, 3)), total[1] + seen.sum(1)), None

  kvi = ((kv.k, kv.v),)
  items = _of(slice(None), (q,), kv.where)
  zeros = jnp.zeros(kv.where.position.shape), jnp.zeros(kv.where.position.shape, int)
  total, queries = _loop(block, zeros, items, kvi)[0]
  return total / jnp.maximum(queries, 1)


def visible(query: Where, key: Where, window):
  """bool[B, T, S]: whether the key is in the query's segment, window and past."""
  back = query.position[:, :, None] - key.position[:, None, :]
  same = query.segment[:, :, None] == key.segment[:, None, :]
  return same & (back >= 0) & (back < window) & (key.segment != 0)[:, None, :]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(scale, cap, q, kv, places):
  return _forward(scale, cap, q, kv, places)[0]


def _forward(scale, cap, q, kv, places):
  # Without this barrier XLA hoists the masks, which depend on positions only, out of
  # the loops and stores them all.
  q, places = jax.lax.optimization_barrier((q, places))
  where, _, window = places

  def block(_, item):
    qi, whereis = item
    s, _ = _scores(scale, cap, qi, kvi, _seen(whereis, keys, window))
    top = s.max(-1, keepdims=True)
    p = jnp.exp(s - top)
    total = p.sum(-1, keepdims=True)
    # Dividing the output [T, N] by the total is cheaper than dividing p [T, S].
    out = _split_sum(_weigh, p, [v for _, v in kvi]) / total
    return None, (out.astype(q.dtype), top + jnp.log(total))

  parts = []
  for rows in _quarters(q.shape[3]):
    kvi, keys = _until(rows.stop, kv, places)
    parts.append(_loop(block, None, _of(rows, (q,), where), kvi)[1])
  out, lse = (jnp.concatenate(x, 3) for x in zip(*parts, strict=True))
  out, lse = checkpoint_name(out, "attention"), checkpoint_name(lse, "attention")
  return out, (q, kv, places, out, lse)


def _backward(scale, cap, residuals, g):
  q, kv, places, out, lse = residuals
  g, places = jax.lax.optimization_barrier((g, places))
  where, _, window = places
  delta = jnp.sum(g.astype(jnp.float32) * out, -1, keepdims=True)

  def block(dkv, item):
    qi, gi, di, lsei, whereis = item
    s, slope = _scores(scale, cap, qi, kvi, _seen(whereis, keys, window))
    p = jnp.exp(s - lsei)
    dp = jnp.concatenate([_dot(gi, v) for _, v in kvi], -1)
    ds = (p * (dp - di) * slope).astype(q.dtype)
    new, at = [], 0
    for (dk, dv), (k, _) in zip(dkv, kvi, strict=True):
      n = k.shape[2]
      here = slice(at, at + n)
      dk = dk.at[:, :, :n].add(_collect(ds[..., here], qi) * scale)
      dv = dv.at[:, :, :n].add(_collect(p[..., here].astype(g.dtype), gi))
      new.append((dk, dv))
      at += n
    dq = _split_sum(_weigh, ds, [k for k, _ in kvi]) * scale
    return tuple(new), dq.astype(q.dtype)

  dqs = []
  dkv = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), kv)
  for rows in _quarters(q.shape[3]):
    kvi, keys = _until(rows.stop, kv, places)
    dkv, dq = _loop(block, dkv, _of(rows, (q, g, delta, lse), where), kvi)
    dqs.append(dq)
  dkv = jax.tree.map(lambda d, x: d.astype(x.dtype), dkv, kv)
  return jnp.concatenate(dqs, 3), dkv, jax.tree.map(lambda _: None, places)


_attend.defvjp(_forward, _backward)


def _quarters(t: int) -> list[slice]:
  """At most four slices of t queries; no query needs a key after its slice's end."""
  size = max(_LEAST, math.ceil(t / 4))
  return [slice(i, min(i + size, t)) for i in range(0, t, size)]


def _until(end: int, kv, places):
  """(keys and values, their places) of the parts, the first one cut at `end`."""
  keys = places[1]
  first = tuple(x[:, :, :end] for x in kv[0])
  return (first, *kv[1:]), (jax.tree.map(lambda x: x[:, :end], keys[0]), *keys[1:])


def _of(rows: slice, arrays, where: Where):
  """[(queries `rows` of an array, its axis T)] for `arrays` and both of `where`."""
  arrays = [(x[:, :, :, rows], 3) for x in arrays]
  return [*arrays, *((x[:, rows], 1) for x in where)]


def _loop(block, carry, items, kv):
  """Scans `block` over blocks of queries whose scores take at most about 16 MiB.

  It is a `lax.scan` rather than an unrolled loop, so that XLA cannot compute the scores
  of several blocks at the same time.

  Args:
    block: (carry, (*arrays, Where)) -> (carry, tree of arrays [B, K, G, T, ...]).
    carry: the initial carry.
    items: what `_of` returns.
    kv: the keys and values that these queries attend to.
  Returns:
    (last carry, tree of arrays [B, K, G, T, ...] over all queries).
  """
  b, k, g, t = items[0][0].shape[:4]
  keys = sum(k.shape[2] for k, _ in kv)
  numbers = b * k * g * t * keys / sharding.cut("batch", "heads")
  count = pieces(t, math.ceil(numbers / _NUMBERS))
  size = math.ceil(t / count)

  def cut(x, axis):
    room = [(0, 0)] * x.ndim
    room[axis] = (0, count * size - t)  # padded queries have segment 0, gradient 0
    x = jnp.pad(x, room)
    x = x.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)

  def join(x):
    x = jnp.moveaxis(x, 0, 3)
    return x.reshape(*x.shape[:3], count * size, *x.shape[5:])[:, :, :, :t]

  def body(carry, xs):
    *arrays, position, segment = xs
    return block(carry, (*arrays, Where(position, segment)))

  if count == 1:
    return body(carry, [x for x, _ in items])
  carry, out = jax.lax.scan(body, carry, [cut(*item) for item in items])
  return carry, jax.tree.map(join, out)


def _seen(where: Where, keys, window):
  """`visible` for the keys of all parts, bool[B, T, S]."""
  return jnp.concatenate([visible(where, key, window) for key in keys], -1)


def _scores(scale, cap, q, kv, seen):
  """(masked scores float32[B, K, G, T, S], slope of `cap` at each, or 1 without)."""
  s = jnp.concatenate([_dot(q, k) for k, _ in kv], -1) * scale
  slope = 1.0
  if cap is not None:
    s = cap * jnp.tanh(s / cap)
    slope = 1 - jnp.square(s / cap)
  return s + jnp.where(seen, 0.0, _MASKED)[:, None, None], slope


def _split_sum(f, s, xs):
  """Sum of f(s_i, x_i) over parts x_i [B, K, S_i, N], with s split on its last axis."""
  total, at = 0, 0
  for x in xs:
    total += f(s[..., at : at + x.shape[2]], x)
    at += x.shape[2]
  return total


# The three matrix products, each batched over B and K.


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
