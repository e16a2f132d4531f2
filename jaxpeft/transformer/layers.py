"""Decoder layers as pure functions of weights and one or two streams of tokens.

The first stream carries gradient. The optional second stream is constant: it passes
through the same weights, and each stream attends to the other, but no gradient flows
through it. The backward pass therefore needs only the second stream's keys and values
(see `objectives.token_selection`).
Axes: B batch, T tokens, D width, H query heads, K key/value heads, G = H / K query
heads per key/value head, N head_dim, F feed-forward.
"""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxpeft.linear import Weights, dense, linear
from jaxpeft.parallel import sharding
from jaxpeft.transformer import chunking, experts
from jaxpeft.transformer.attention import EVERYWHERE, KV, Where, attend, received
from jaxpeft.transformer.config import ModelConfig
from jaxpeft.transformer.rope import query_scale, rope, rotate

_NUMBERS = 2**23  # elements of one array in a chunk of the feed-forward part


class Place(NamedTuple):
  """Positions of a stream's tokens, which a layer needs besides the hidden states."""

  where: Where
  angles: tuple[jax.Array, jax.Array]  # (sin, cos), from `rope`
  query_scale: jax.Array | None  # float32[B, 1, T, 1], or None for 1


class Kind(NamedTuple):
  """What differs between layers of one model besides the weights. Stacks add an axis.

  Attributes:
    window: int32[], how many positions a token sees, counting its own.
    rope: int32[], index of the layer's rotary embedding; None if there is only one.
  """

  window: jax.Array
  rope: jax.Array | None


def place(c: ModelConfig, where: Where, length=None) -> Place:
  """The `Place` of tokens at `where`; `length` as in `rope`."""
  angles = rope(where.position, c, length)
  return Place(where, angles, query_scale(where.position, c))


def kinds(c: ModelConfig) -> Kind:
  """The kinds of all layers, stacked."""
  windows: Any = np.array(c.windows or [EVERYWHERE] * c.depth)
  ropes: Any = np.array(c.rope_of or [0] * c.depth, np.int32)
  return Kind(windows, ropes if len(c.ropes) > 1 else None)


class LayerWeights(nn.Module):
  """Declares the weights of one layer: attn, mlp (or router, experts), norm, bias.

  Weights of experts have a leading axis of experts.
  """

  config: ModelConfig

  @nn.compact
  def __call__(self):
    c = self.config
    d, q, k = c.width, c.heads * c.head_dim, c.kv_heads * c.head_dim
    attn = (("q", (d, q)), ("k", (d, k)), ("v", (d, k)), ("o", (q, d)))
    mlp = (("gate", (d, c.ff)), ("up", (d, c.ff)), ("down", (c.ff, d)))
    ones = nn.initializers.constant(1 - c.norm_offset)
    if c.experts:
      each = tuple((name, (c.experts, *shape)) for name, shape in mlp)
      init = nn.initializers.lecun_normal(batch_axis=0)
      blocks = dict(
        router=Weights((("w", (d, c.experts)),), name="router")(),
        experts=Weights(each, init, name="experts")(),
      )
    else:
      blocks = dict(mlp=Weights(mlp, name="mlp")())
    return dict(
      attn=Weights(attn, name="attn")(),
      **blocks,
      norm=Weights(_norm_shapes(c), ones, name="norm")(),
      bias=Weights(_bias_shapes(c), nn.initializers.zeros, name="bias")(),
    )


def layer(
  c: ModelConfig, w, xs, places, kind: Kind, cache=None, chunked=False, keep=None
):
  """One layer, applied to one stream or to two, of which the second is constant.

  Args:
    c: the architecture.
    w: the dict that `LayerWeights` declares.
    xs: tuple of one or two streams of hidden states [B, T, D].
    places: a `Place` for each stream.
    kind: of this layer.
    cache: `KV` of earlier tokens, which both streams attend to; or None.
    chunked: whether to compute the feed-forward part in chunks of tokens, each of which
      the backward pass recomputes.
    keep: what to return about the first stream, a key of `_KEPT`; or None.
  Returns:
    (xs, what `keep` names, or None).
  """
  constant = lax.stop_gradient
  w = sharding.gathered(w)
  ws: tuple = (w, constant(w))[: len(xs)]
  xs = (xs[0], *constant(xs[1:]))
  qs, kvs = [], []
  for w, x, place in zip(ws, xs, places, strict=True):
    q, k, v = _qkv(c, w, x, place, kind)
    if kvs:
      k, v = checkpoint_name(k, "constant_kv"), checkpoint_name(v, "constant_kv")
    qs.append(q)
    kvs.append(KV(k, v, place.where))
  seen = KV(constant(kvs[0].k), constant(kvs[0].v), kvs[0].where)
  others = [kvs[1:], [seen]]
  ys = []
  for i, (w, x, q) in enumerate(zip(ws, xs, qs, strict=True)):
    parts = [kvs[i], *others[i], *([cache] if cache else [])]
    here = places[i].where
    ys.append(_finish(c, w, x, q, here, parts, kind.window, chunked or i > 0))
  return tuple(ys), keep and _KEPT[keep](c, qs[0], kvs[0], kind.window)


def _qkv(c, w, x, place: Place, kind: Kind):
  """Queries [B, H, T, N], keys and values [B, K, T, N]; the first two are rotated."""
  attn, bias, norm = w["attn"], w["bias"], w["norm"]
  h = rms_norm(x, norm["attn"], c) if c.pre_norms else x
  h = sharding.constrain(h, "batch", None, None)

  def project(name):
    y = add_bias(linear(h, attn[name], "attention"), bias.get(name))
    if c.qk_norm == "width" and name != "v":
      y = rms_norm(y, norm[name], c)
    return sharding.constrain(heads(y, c.head_dim), "batch", "heads", None, None)

  q, k, v = map(project, "qkv")
  if c.qk_norm == "head":
    q, k = rms_norm(q, norm["q"], c), rms_norm(k, norm["k"], c)
  angles = place.angles
  if kind.rope is not None:
    angles = tuple(lax.dynamic_index_in_dim(x, kind.rope, 0, False) for x in angles)
  q, k = rotate(q, *angles), rotate(k, *angles)
  return _times(q, place.query_scale), k, v


def _finish(c, w, x, q, where, parts, window, chunked: bool):
  """The layer's output [B, T, D]: attention to `parts`, then the feed-forward part."""
  attn, norm, bias = w["attn"], w["norm"], w["bias"]
  b, _, t, _ = q.shape
  h = attend(_grouped(c, q), where, parts, window, _scale(c), c.attn_softcap)
  h = h.reshape(q.shape).swapaxes(1, 2).reshape(b, t, -1)
  h = add_bias(linear(h, attn["o"], "attention"), bias.get("o"))
  x = x + _scaled(rms_norm(h, norm["attn_post"], c) if c.post_norms else h, c)
  x = sharding.constrain(x, "batch", "length", None)

  # Without these barriers XLA delays the sum of the base's and the adapter's product
  # and keeps both operands alive.
  after_all = lax.optimization_barrier if chunked else lambda x: x

  def gated_products(h, mlp):
    gate = add_bias(linear(h, mlp["gate"]), bias.get("gate"))
    up = add_bias(linear(h, mlp["up"]), bias.get("up"))
    gate, up = after_all((gate, up))
    h = after_all(gated(gate, up, c.activation))
    return add_bias(linear(h, mlp["down"]), bias.get("down"))

  def feed_forward(x):
    h = rms_norm(x, norm["mlp"], c) if c.pre_norms else x
    h = sharding.constrain(h, "batch", None, None)
    if c.experts:
      h = experts.mix(c, h, w["router"]["w"], w["experts"], gated_products)
    else:
      h = gated_products(h, w["mlp"])
    return x + _scaled(rms_norm(h, norm["mlp_post"], c) if c.post_norms else h, c)

  if chunked:
    numbers = b * t * c.ff * max(c.experts_per_token, 1) / sharding.cut("batch", "ff")
    x = sharding.constrain(x, "batch", None, None)
    x = chunking.over_tokens(feed_forward, math.ceil(numbers / _NUMBERS), x)
  else:
    x = feed_forward(x)
  return sharding.constrain(x, "batch", "length", None)


def _received(c, q, kv: KV, window):
  return received(_grouped(c, q), kv, window, _scale(c), c.attn_softcap)


# What a layer may return about its first stream.
_KEPT = {"kv": lambda c, q, kv, window: (kv.k, kv.v), "attention": _received}


def _grouped(c: ModelConfig, q):
  """[B, H, T, N] -> [B, K, G, T, N]."""
  return q.reshape(q.shape[0], c.kv_heads, -1, *q.shape[2:])


def _scaled(h, c: ModelConfig):
  """What a block adds to its input, times `residual_scale`."""
  return h if c.residual_scale == 1 else h * jnp.asarray(c.residual_scale, h.dtype)


def _times(x, scale):
  """x * scale in x's dtype; x if scale is None."""
  return x if scale is None else x * scale.astype(x.dtype)


def _scale(c: ModelConfig) -> float:
  return c.head_dim**-0.5 if c.query_scale is None else c.query_scale


def gated(gate, up, activation: str):
  """act(gate) * up, for an activation function by name."""

  # Recomputed in the backward pass, which otherwise would keep four arrays of this size
  # rather than the two arguments.
  @functools.partial(jax.checkpoint, prevent_cse=False)
  def product(gate, up):
    act = {"silu": nn.silu, "gelu_tanh": functools.partial(nn.gelu, approximate=True)}
    return act[activation](gate) * up

  return product(gate, up)


def rms_norm(x, scale, c: ModelConfig):
  """Root-mean-square norm over the last axis, computed in float32."""
  h = x.astype(jnp.float32)
  h = h * jax.lax.rsqrt(jnp.mean(h * h, -1, keepdims=True) + c.rms_eps)
  return (h * (dense(scale).astype(jnp.float32) + c.norm_offset)).astype(x.dtype)


def add_bias(x, b):
  """x + b, or x if there is no bias."""
  return x if b is None else x + dense(b).astype(x.dtype)


def heads(x, head_dim: int):
  """[B, T, heads * N] -> [B, heads, T, N]."""
  return x.reshape(*x.shape[:-1], -1, head_dim).swapaxes(1, 2)


def _norm_shapes(c: ModelConfig):
  names = ["attn", "mlp"] * c.pre_norms + ["attn_post", "mlp_post"] * c.post_norms
  shapes = [(name, (c.width,)) for name in names]
  of = {
    "": (),
    "head": (("q", (c.head_dim,)), ("k", (c.head_dim,))),
    "width": (("q", (c.heads * c.head_dim,)), ("k", (c.kv_heads * c.head_dim,))),
  }
  return (*shapes, *of[c.qk_norm])


def _bias_shapes(c: ModelConfig):
  q, k = c.heads * c.head_dim, c.kv_heads * c.head_dim
  return (
    (("q", (q,)), ("k", (k,)), ("v", (k,))) * c.qkv_bias
    + (("o", (c.width,)),) * c.o_bias
    + (("gate", (c.ff,)), ("up", (c.ff,)), ("down", (c.width,))) * c.mlp_bias
  )
