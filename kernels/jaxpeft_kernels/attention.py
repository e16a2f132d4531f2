"""Fused softmax attention on NVIDIA GPUs: no score ever reaches the GPU's memory.

Keys and values come in parts: a layer's own tokens, a cache, the constant tokens of
token selection. The kernels run once for each part. The log of each part's softmax
denominator joins the results. Given the joint log, the backward pass of each part is
independent of the others. So nothing is concatenated, and the compiler drops the
gradient of a part if nothing uses it.

Stamps. One int32 per token says where it is: (segment - 1) * span + position. A query
sees a key if 0 <= its stamp - the key's stamp < window. A later key gives a negative
difference; a key of another segment gives a negative one or, as span is twice the
number of tokens, one that no window reaches. Padding has a stamp that fails for all.
So one subtraction and one comparison handle causality, packing, windows, padding and
tokens in any order.

Bounds. The smallest and largest stamps of each tile say which tiles of queries and keys
may see each other, and which pairs of tiles need no mask. Tiles that no query sees are
not loaded. Any order of tokens gives the right result. The usual order is fast, because
then most tiles need no mask or are not loaded.

The arguments of `forward`, `backward` and `attend` are those of jaxpeft's `attend`.
Axes: B batch, K key/value heads, G query heads per key/value head, T queries, S keys of
a part, N head_dim.
Source: Dao 2023 (FlashAttention-2); Rabe and Staats 2021.
"""

import functools
import importlib
import math

import jax
import jax.numpy as jnp

from jaxpeft_kernels import attention_tiles, bridge

MOST_TOKENS = 2**15  # of all parts of a row, so that stamps are below _NO_KEY
_NO_QUERY, _NO_KEY = -1, 2**31 - 1  # stamps of padding
_NOTHING = -1.0e30  # the log of the denominator of a query that sees no key


def usable(q, kv) -> bool:
  """Whether the kernels can compute attention of q to the parts kv.

  They need 16-bit numbers, all of one dtype, head_dim of at most 256, at most
  `MOST_TOKENS` keys, and a GPU that `attention_tiles` knows.

  Args:
    q: [B, K, G, T, N].
    kv: (keys, values) of each part, [B, K, S, N] each.
  """
  dtypes = {q.dtype, *(x.dtype for part in kv for x in part)}
  return (
    dtypes in ({jnp.dtype("bfloat16")}, {jnp.dtype("float16")})
    and q.shape[-1] <= attention_tiles.HEAD_DIM
    and min(q.size, *(k.size for k, _ in kv)) > 0
    and sum(k.shape[2] for k, _ in kv) <= MOST_TOKENS
    and attention_tiles.architecture(bridge.capability()) is not None
  )


def attend(q, where, parts, window, scale: float, cap: float | None):
  """Attention of queries to several sets of keys, differentiable in q, keys and values.

  Args:
    q: [B, K, G, T, N].
    where: (positions, segments) of the queries, int32[B, T] each. Segments are 1, 2,
      ...; 0 is padding. Positions are below the number of keys of all parts.
    parts: [(keys [B, K, S, N], values [B, K, S, N], where [B, S])].
    window: int32[], how many positions a query sees, counting its own.
    scale: factor on the products of queries and keys.
    cap: soft cap: scores become cap * tanh(score / cap). None disables it.
  Returns:
    [B, K, G, T, N] in q's dtype. A query that sees no key gets 0.
  """
  kv = tuple((k, v) for k, v, _ in parts)
  return _attend(scale, cap, q, kv, (where, tuple(x for _, _, x in parts), window))


def attend_ref(q, where, parts, window, scale: float, cap: float | None):
  """`attend` in plain JAX: a softmax over all scores."""
  k, v = (jnp.concatenate([part[i] for part in parts], 2) for i in (0, 1))
  s = jnp.einsum("bkgtn,bksn->bkgts", q, k, preferred_element_type=jnp.float32) * scale
  if cap is not None:
    s = cap * jnp.tanh(s / cap)
  places = [[place[i] for _, _, place in parts] for i in (0, 1)]
  position, segment = (jnp.concatenate(x, 1)[:, None] for x in places)
  back = where[0][:, :, None] - position
  seen = (where[1][:, :, None] == segment) & (segment != 0)
  seen = (seen & (back >= 0) & (back < window))[:, None, None]
  p = (jax.nn.softmax(jnp.where(seen, s, _NOTHING)) * seen).astype(v.dtype)
  out = jnp.einsum("bkgts,bksn->bkgtn", p, v, preferred_element_type=jnp.float32)
  return out.astype(q.dtype)


def forward(scale: float, cap: float | None, q, kv, places):
  """(attention's output as q, float32[B, K, G, T, 1]: log of softmax's denominator).

  Args:
    scale, cap, q: as in `attend`.
    kv: (keys, values) of each part.
    places: (where of the queries, where of each part, window), as in `attend`.
  """
  # One part's output is final. Several are joined before they are rounded.
  dtype = q.dtype if len(kv) == 1 else jnp.float32
  results = [(q.shape, dtype), ((*q.shape[:4], 1), jnp.float32)]
  outs, logs = [], []
  for (k, v), marks in zip(kv, _marks(places, kv), strict=True):
    out, log = _run("forward", (q, k, v), marks, results, scale, cap)
    outs.append(out)
    logs.append(log)
  if len(kv) == 1:
    return outs[0], logs[0]
  log = jax.nn.logsumexp(jnp.stack(logs), 0)
  out = sum(jnp.exp(x - log) * out for x, out in zip(logs, outs, strict=True))
  return out.astype(q.dtype), log


def backward(scale: float, cap: float | None, q, kv, places, out, lse, g):
  """(gradient of q, (gradients of keys, of values) of each part), in their dtypes.

  Args:
    scale, cap, q, kv, places: as in `forward`.
    out, lse: what `forward` returned.
    g: gradient of out.
  """
  delta = jnp.sum(g.astype(jnp.float32) * out, -1, keepdims=True)
  dtype = q.dtype if len(kv) == 1 else jnp.float32
  dqs, dkv = [], []
  for (k, v), marks in zip(kv, _marks(places, kv), strict=True):
    arrays = q, k, v, g, lse, delta
    dqs += _run("backward_q", arrays, marks, [(q.shape, dtype)], scale, cap)
    like = [(x.shape, x.dtype) for x in (k, v)]
    dkv.append(tuple(_run("backward_kv", arrays, marks, like, scale, cap)))
  return sum(dqs).astype(q.dtype), tuple(dkv)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(scale, cap, q, kv, places):
  return forward(scale, cap, q, kv, places)[0]


def _attend_forward(scale, cap, q, kv, places):
  out, lse = forward(scale, cap, q, kv, places)
  return out, (q, kv, places, out, lse)


def _attend_backward(scale, cap, residuals, g):
  dq, dkv = backward(scale, cap, *residuals, g)
  return dq, dkv, jax.tree.map(lambda _: None, residuals[2])


_attend.defvjp(_attend_forward, _attend_backward)


def stamps(where, tokens: int, of_keys: bool):
  """int32[B, S]: the stamp of each token, as the module's docstring defines it.

  Args:
    where: (positions, segments), int32[B, S] each.
    tokens: number of keys of all parts.
    of_keys: whether these are keys, not queries.
  """
  position, segment = where
  padding = _NO_KEY if of_keys else _NO_QUERY
  return jnp.where(segment == 0, padding, (segment - 1) * (2 * tokens) + position)


def _marks(places, kv):
  """[(stamps of queries, of keys, int32[1]: window)] of each part."""
  where, keys, window = places
  tokens = sum(k.shape[2] for k, _ in kv)
  # A window longer than the row is no limit, but would reach into other segments.
  window = jnp.minimum(jnp.asarray(window, jnp.int32), tokens)[None]
  query = stamps(where, tokens, False)
  return [(query, stamps(key, tokens, True), window) for key in keys]


def bounds(q_stamp, k_stamp, window, tile, of_keys: bool):
  """Which tiles see each other, for each tile of queries, or of keys if of_keys.

  Args:
    q_stamp: int32[B, T].
    k_stamp: int32[B, S].
    window: int32[1].
    tile: an `attention_tiles.Tile`.
    of_keys: whether to bound the tiles of queries that see each tile of keys.
  Returns:
    int32[B, tiles, 4], numbers of tiles of the other kind: the first, the first of
    those between which every query sees every key, the end of these, the end of all.
    Outside the middle run, not all tiles need to see each other.
  """
  q_low, q_high, q_whole = (x[:, :, None] for x in _ends(q_stamp, tile.rows, _NO_QUERY))
  k_low, k_high, k_whole = (x[:, None] for x in _ends(k_stamp, tile.keys, _NO_KEY))
  # A difference overflows only where a tile is all padding, and q_high < k_low.
  some = (q_high >= k_low) & (q_low - k_high < window)
  full = q_whole & k_whole & (q_low >= k_high) & (q_high - k_low < window)
  if of_keys:
    some, full = some.swapaxes(1, 2), full.swapaxes(1, 2)
  count = some.shape[-1]
  index = jnp.arange(count, dtype=jnp.int32)
  end = jnp.where(some, index + 1, 0).max(-1)
  first = jnp.minimum(jnp.where(some, index, count).min(-1), end)
  middle = jnp.where(full, index, end[..., None]).min(-1)
  after = jnp.where(full | (index < middle[..., None]), count, index).min(-1)
  return jnp.stack([first, middle, jnp.clip(after, middle, end), end], -1)


def _ends(stamp, size: int, padding: int):
  """(smallest, largest stamp, whether nothing is padding), [B, tiles] each."""
  room = ((0, 0), (0, -stamp.shape[1] % size))
  stamp = jnp.pad(stamp, room, constant_values=padding)
  stamp = stamp.reshape(len(stamp), -1, size)
  real = stamp != padding
  low = jnp.where(real, stamp, _NO_KEY).min(-1)
  return low, jnp.where(real, stamp, _NO_QUERY).max(-1), real.all(-1)


def _run(name: str, arrays, marks, results, scale, cap):
  """The results of a kernel.

  Args:
    name: of the kernel.
    arrays: its first inputs, of which q, k and v are the first.
    marks: of `_marks`.
    results: [(shape, dtype)].
    scale, cap: as in `attend`.
  """
  b, kv_heads, groups, t, n = arrays[0].shape
  s = arrays[1].shape[2]
  of_keys = name == "backward_kv"
  tile = attention_tiles.tile_for(name, n, cap is not None, bridge.capability())
  tiles = math.ceil(s / tile.keys) if of_keys else math.ceil(t / tile.rows)
  heads = kv_heads if of_keys else kv_heads * groups
  kernels = importlib.import_module("jaxpeft_kernels.attention_triton")
  return bridge.call(
    getattr(kernels, name),
    *arrays,
    *marks[:2],
    bounds(*marks, tile, of_keys),
    marks[2],
    out=[jax.ShapeDtypeStruct(*x) for x in results],
    grid=(b * heads * tiles,),
    warps=tile.warps,
    stages=tile.stages,
    H=kv_heads * groups,
    G=groups,
    T=t,
    S=s,
    N=n,
    WIDE=max(16, 1 << (n - 1).bit_length()),  # the least that a product takes
    ROWS=tile.rows,
    KEYS=tile.keys,
    SCALE=scale,
    CAP=float(cap or 0),
  )
