"""Llama-family decoder: Llama, Mistral, Qwen2/2.5/3, Gemma 1/2. Differences are data.

A thin Flax linen module declares names and shapes; what it computes is functions of
arrays, here and in `layers`. Axes: B batch, T tokens, D width, K key/value heads, N
head_dim, V vocabulary.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft.linear import dense, linear, weight
from jaxpeft.parallel import sharding
from jaxpeft.transformer import layers
from jaxpeft.transformer.attention import EVERYWHERE, Where
from jaxpeft.transformer.config import ModelConfig
from jaxpeft.transformer.rope import rope


class Stream(NamedTuple):
  """Tokens that enter the model."""

  tokens: jax.Array  # int[B, T]
  where: Where
  noise: jax.Array | None = None  # float[B, T, D], added to the embeddings


class Transformer(nn.Module):
  """tokens int[B, T] -> logits float32[B, T, V].

  Attributes:
    config: the architecture.
    groups: layers per scan, summing to depth; () is one scan over all.
    remat: what of a layer the backward pass computes again; a key of layers.REMAT, or
      one for each group, with commas between.
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
    noise=None,
    kv=None,
    keep=None,
    at=None,
    score=None,
    constant: Stream | None = None,
  ):
    """Logits, and with `keep` also what each group's layers gave of it.

    Args:
      tokens: int[B, T].
      where: positions and segments; None means one full row each from position 0.
      noise: float[B, T, D], added to the embeddings; None is none.
      kv: per group a KV with a leading depth axis on k and v, or None.
      keep: what else to return of every layer, with a leading axis [depth]: "kv", keys
        and values (k, v) [B, K, T, N], to fill a cache; "attention", float32[B, T], how
        much of it each token gets; or None.
      at: int[B], the one token of each row to give logits [B, V] for; None is all.
      score: called with the function from final hidden states to logits, and those
        states [B, T, D]; what it returns comes back instead of logits, so that a loss
        need not hold all of them at once.
      constant: other tokens of the same rows. They see these tokens and are seen by
        them, but have no logits, and no gradient flows through them.
    """
    c = self.config
    streams = [Stream(tokens, where or full_rows(tokens.shape), noise)]
    streams += [] if constant is None else [constant]
    embed = weight(self, "embed", (c.vocab_size, c.width), nn.initializers.normal(0.02))
    embed = dense(sharding.gathered(dict(embed=embed))["embed"])
    xs = tuple(self._embed(embed, stream) for stream in streams)
    places = [layers.Place(s.where, rope(s.where.position, c)) for s in streams]
    kept, first = [], 0
    depths = layer_groups(self.groups, c.depth)
    remats = group_remats(self.remat, depths)
    for i, (depth, remat) in enumerate(zip(depths, remats, strict=True)):
      stack = nn.vmap(
        layers.LayerWeights,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        axis_size=depth,
      )(c, name=f"layers_{i}")()
      windows = np.array(c.windows[first : first + depth] or [EVERYWHERE] * depth)
      xs, kept_i = layers.run(c, remat, stack, xs, places, windows, kv and kv[i], keep)
      kept.append(kept_i)
      first += depth
    x = xs[0]
    if at is not None:
      x = jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0]
    ones = nn.initializers.constant(1 - c.norm_offset)
    x = layers.rms_norm(x, weight(self, "final_norm", (c.width,), ones), c)
    head = (
      embed.T
      if c.tied
      else weight(self, "head", (c.width, c.vocab_size), nn.initializers.lecun_normal())
    )
    head = sharding.gathered(dict(head=head))["head"]

    def to_logits(x):
      return soft_cap(linear(x, head).astype(jnp.float32), c.final_softcap)

    out = to_logits(x) if score is None else score(to_logits, x)
    return (out, kept) if keep else out

  def _embed(self, embed, stream: Stream):
    x = embed[stream.tokens].astype(self.dtype)
    if self.config.embed_scale:
      x = x * jnp.asarray(math.sqrt(self.config.width), x.dtype)
    x = x if stream.noise is None else x + stream.noise.astype(x.dtype)
    return sharding.constrain(x, "batch", "length", None)


def soft_cap(x, cap: float | None):
  """cap * tanh(x / cap), which is smooth and stays within +-cap; None: x."""
  return x if cap is None else cap * jnp.tanh(x / cap)


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
  whole = all(isinstance(n, int) and n > 0 for n in groups)
  if not whole or sum(groups) != depth:
    raise ValueError(f"groups {groups} must be positive and sum to depth {depth}")
  return groups


def group_remats(remat: str, groups: tuple[int, ...]) -> list[str]:
  """The rematerialization of each group of layers.

  Raises:
    ValueError: if there is more than one, and not one for each group.
  """
  names = remat.split(",")
  if len(names) not in (1, len(groups)):
    raise ValueError(f"{remat!r} names {len(names)} for {len(groups)} groups of layers")
  return names * len(groups) if len(names) == 1 else names


def layer_names(params) -> list[str]:
  """The names of the groups in a parameter tree, in the order of the layers."""
  names = [name for name in params if name.startswith("layers_")]
  return sorted(names, key=lambda name: int(name.removeprefix("layers_")))
