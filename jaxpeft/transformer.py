"""Llama-family decoder: Llama, Mistral, Qwen2/2.5/3, Gemma 1/2. Differences are data.

A thin Flax linen module declares names and shapes and scans over groups of layers;
the rest is functions of arrays. Axes: B batch, T tokens, S keys outside x, D width,
H query heads, K key/value heads, G = H / K, N head_dim, F feed-forward, V vocabulary.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft.attention import EVERYWHERE, KV, Where, attend
from jaxpeft.linear import Weights, dense, linear, weight
from jaxpeft.rope import rope, rotate


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """All that differs between the families. Sizes are in units of elements."""

  family: str  # Hugging Face `model_type`, needed only to write checkpoints
  vocab_size: int
  width: int
  depth: int
  heads: int
  kv_heads: int
  head_dim: int
  ff: int
  max_positions: int
  rope_theta: float = 10_000.0
  rope_scaling: tuple[tuple[str, float | str], ...] = ()  # ("rope_type", "llama3"), ...
  rms_eps: float = 1e-6
  activation: str = "silu"  # or "gelu_tanh"
  tied: bool = False  # the head is the transposed embedding
  qkv_bias: bool = False
  o_bias: bool = False
  mlp_bias: bool = False
  qk_norm: bool = False
  post_norms: bool = False  # Gemma 2: also after attention and after the MLP
  norm_offset: float = 0.0  # Gemma: the norm multiplies by 1 + w
  embed_scale: bool = False  # Gemma: embeddings times sqrt(width)
  query_scale: float | None = None  # None: head_dim ** -0.5
  attn_softcap: float | None = None
  final_softcap: float | None = None
  windows: tuple[int, ...] = ()  # per layer, in tokens; () means all see everything
  bos_id: int | None = None
  eos_ids: tuple[int, ...] = ()
  pad_id: int | None = None

  def __post_init__(self):
    if self.heads % self.kv_heads:
      raise ValueError(f"heads {self.heads} is no multiple of kv_heads {self.kv_heads}")
    if self.windows and len(self.windows) != self.depth:
      raise ValueError(f"{len(self.windows)} windows for depth {self.depth}")


class Transformer(nn.Module):
  """tokens int[B, T] -> logits float32[B, T, V].

  Attributes:
    config: the architecture.
    groups: layers per scan, summing to depth; () is one scan over all.
    remat: what of a layer the backward pass computes again; a key of REMAT.
    dtype: of activations and matmuls; norms, softmax and logits are float32.
  """

  config: ModelConfig
  groups: tuple[int, ...] = ()
  remat: str = "products"
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self,
    tokens,
    where: Where | None = None,
    kv=None,
    keep_kv=False,
    at=None,
    noise=None,
    score=None,
  ):
    """Logits, and with `keep_kv` also each group's (k, v) [depth, B, K, T, N] of x.

    Args:
      tokens: int[B, T].
      where: positions and segments; None means one full row each from position 0.
      kv: per group a KV with a leading depth axis on k and v, or None.
      keep_kv: return keys and values too, to fill a cache.
      at: int[B], the one token of each row to give logits [B, V] for; None is all.
      noise: float[B, T, D], added to the embeddings; None is none.
      score: called with the function from final hidden states to logits, and those
        states [B, T, D]; what it returns comes back instead of logits, so that a loss
        need not hold all of them at once.
    """
    c = self.config
    where = where or full_rows(tokens.shape)
    embed = weight(self, "embed", (c.vocab_size, c.width), nn.initializers.normal(0.02))
    embed = dense(embed)
    x = embed[tokens].astype(self.dtype)
    if c.embed_scale:
      x = x * jnp.asarray(math.sqrt(c.width), x.dtype)
    x = x if noise is None else x + noise.astype(x.dtype)
    angles = rope(where.position, c)
    kept, first = [], 0
    for i, depth in enumerate(layer_groups(self.groups, c.depth)):
      windows = np.array(c.windows[first : first + depth] or [EVERYWHERE] * depth)
      body = nn.scan(
        REMAT[self.remat],
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast, 0, 0),
        length=depth,
      )(c, keep_kv, name=f"layers_{i}")
      group_kv, outside = (kv[i][:2], kv[i].where) if kv else (None, None)
      x, kept_i = body(x, (where, outside, angles), windows, group_kv)
      kept.append(kept_i)
      first += depth
    if at is not None:
      x = jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0]
    ones = nn.initializers.constant(1 - c.norm_offset)
    x = rms_norm(x, weight(self, "final_norm", (c.width,), ones), c)
    head = (
      embed.T
      if c.tied
      else weight(self, "head", (c.width, c.vocab_size), nn.initializers.lecun_normal())
    )

    def to_logits(x):
      return soft_cap(linear(x, head).astype(jnp.float32), c.final_softcap)

    out = to_logits(x) if score is None else score(to_logits, x)
    return (out, kept) if keep_kv else out


class Block(nn.Module):
  """One layer; `kv` is the one seam through which other tokens are seen."""

  config: ModelConfig
  keep_kv: bool

  @nn.compact
  def __call__(self, x, places, window, kv):
    c, (where, outside, angles) = self.config, places
    d, q, k = c.width, c.heads * c.head_dim, c.kv_heads * c.head_dim
    shapes = (("q", (d, q)), ("k", (d, k)), ("v", (d, k)), ("o", (q, d)))
    attn = Weights(shapes, name="attn")()
    shapes = (("gate", (d, c.ff)), ("up", (d, c.ff)), ("down", (c.ff, d)))
    mlp = Weights(shapes, name="mlp")()
    ones = nn.initializers.constant(1 - c.norm_offset)
    norm = Weights(_norm_shapes(c), ones, name="norm")()
    bias = Weights(_bias_shapes(c), nn.initializers.zeros, name="bias")()

    h = rms_norm(x, norm["attn"], c)
    q, k, v = (
      heads(add_bias(linear(h, attn[n]), bias.get(n)), c.head_dim) for n in "qkv"
    )
    if c.qk_norm:
      q, k = rms_norm(q, norm["q"], c), rms_norm(k, norm["k"], c)
    q, k = rotate(q, *angles), rotate(k, *angles)
    parts = [KV(k, v, where)]
    if kv is not None:
      parts.append(KV(*kv, outside))
    b, _, t, n = q.shape
    scale = c.head_dim**-0.5 if c.query_scale is None else c.query_scale
    grouped = q.reshape(b, c.kv_heads, -1, t, n)
    h = attend(grouped, where, parts, window, scale, c.attn_softcap)
    h = h.reshape(q.shape).swapaxes(1, 2).reshape(b, t, -1)
    h = add_bias(linear(h, attn["o"]), bias.get("o"))
    x = x + (rms_norm(h, norm["attn_post"], c) if c.post_norms else h)

    h = rms_norm(x, norm["mlp"], c)
    gate = add_bias(linear(h, mlp["gate"]), bias.get("gate"))
    up = add_bias(linear(h, mlp["up"]), bias.get("up"))
    h = gated(gate, up, c.activation)
    h = add_bias(linear(h, mlp["down"]), bias.get("down"))
    x = x + (rms_norm(h, norm["mlp_post"], c) if c.post_norms else h)
    return x, ((k, v) if self.keep_kv else None)


# What to keep of a layer for the backward pass, which computes the rest again: all;
# what comes out of products with weights and out of attention; or the layer's input.
REMAT = {
  "none": Block,
  "products": nn.remat(
    Block,
    prevent_cse=False,
    policy=jax.checkpoint_policies.save_only_these_names("product"),
  ),
  "layer": nn.remat(Block, prevent_cse=False),
}


def gated(gate, up, activation: str):
  """act(gate) * up."""

  # Recomputed in the backward pass, which would otherwise keep four arrays of this
  # size instead of its two arguments.
  @functools.partial(jax.checkpoint, prevent_cse=False)
  def product(gate, up):
    act = {"silu": nn.silu, "gelu_tanh": functools.partial(nn.gelu, approximate=True)}
    return act[activation](gate) * up

  return product(gate, up)


def rms_norm(x, scale, c: ModelConfig):
  """Root-mean-square norm over the last axis, in float32."""
  h = x.astype(jnp.float32)
  h = h * jax.lax.rsqrt(jnp.mean(h * h, -1, keepdims=True) + c.rms_eps)
  return (h * (dense(scale).astype(jnp.float32) + c.norm_offset)).astype(x.dtype)


def soft_cap(x, cap: float | None):
  """cap * tanh(x / cap), which is smooth and stays within +-cap; None: x."""
  return x if cap is None else cap * jnp.tanh(x / cap)


def add_bias(x, b):
  """x + b, where there is a bias."""
  return x if b is None else x + dense(b).astype(x.dtype)


def heads(x, head_dim: int):
  """[B, T, heads * N] -> [B, heads, T, N]."""
  return x.reshape(*x.shape[:-1], -1, head_dim).swapaxes(1, 2)


def full_rows(shape) -> Where:
  """Each row one segment from position 0."""
  position = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)
  return Where(position, jnp.ones(shape, jnp.int32))


def layer_groups(groups: tuple[int, ...], depth: int) -> tuple[int, ...]:
  """The layers per scan; () is one group.

  Raises:
    ValueError: if the groups do not sum to the depth.
  """
  groups = tuple(groups) or (depth,)
  if sum(groups) != depth or min(groups) < 1:
    raise ValueError(f"groups {groups} must be positive and sum to depth {depth}")
  return groups


def layer_names(params) -> list[str]:
  """The names of the groups in a parameter tree, in the order of the layers."""
  names = [name for name in params if name.startswith("layers_")]
  return sorted(names, key=lambda name: int(name.removeprefix("layers_")))


def _norm_shapes(c: ModelConfig):
  names = ["attn", "mlp"] + ["attn_post", "mlp_post"] * c.post_norms
  shapes = [(name, (c.width,)) for name in names]
  return tuple(shapes + [(name, (c.head_dim,)) for name in "qk" if c.qk_norm])


def _bias_shapes(c: ModelConfig):
  q, k = c.heads * c.head_dim, c.kv_heads * c.head_dim
  return (
    (("q", (q,)), ("k", (k,)), ("v", (k,))) * c.qkv_bias
    + (("o", (c.width,)),) * c.o_bias
    + (("gate", (c.ff,)), ("up", (c.ff,)), ("down", (c.width,))) * c.mlp_bias
  )
