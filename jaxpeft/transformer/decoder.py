"""A decoder for the Llama family and its relatives, whose differences are data.

A thin Flax linen module declares the names and shapes of the weights. The computation
is pure functions of the parameter tree: `hidden` gives the final hidden states, and
`logits` applies the head to them, so that a loss decides which logits exist at a time.
Axes: B batch, T tokens, D width, K key/value heads, N head_dim, V vocabulary.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpeft.errors import InputError
from jaxpeft.linear import dense, linear, matmul_transposed
from jaxpeft.parallel import sharding
from jaxpeft.transformer import layers, remat
from jaxpeft.transformer.attention import Where
from jaxpeft.transformer.config import ModelConfig
from jaxpeft.transformer.rope import needs_length


class Stream(NamedTuple):
  """Tokens that enter the model together."""

  tokens: jax.Array  # int[B, T]
  where: Where
  noise: jax.Array | None = None  # float[B, T, D], added to the embeddings
  length: jax.Array | None = None  # int[B], see `text_length`; None takes it from where


class Transformer(nn.Module):
  """tokens int[B, T] -> logits float32[B, T, V].

  Attributes:
    config: the architecture.
    groups: layers per scan, which sum to the depth; () is one scan over all layers.
    remat: what the backward pass recomputes: a key of `remat.REMAT`, or one for each
      group, separated by commas.
    dtype: of activations and matmuls; norms, softmax and logits are float32.
  """

  config: ModelConfig
  groups: tuple[int, ...] = ()
  remat: str = "products"
  dtype: str = "float32"

  @nn.compact
  def __call__(self, tokens, where: Where | None = None):
    """Logits of tokens int[B, T]; without `where`, each row is one text."""
    if self.is_initializing():
      params = self._declare()
    else:
      params = self.variables["params"]
    stream = Stream(tokens, where or full_rows(tokens.shape))
    return logits(self, params, hidden(self, params, stream))

  def _declare(self) -> dict:
    """Declares every weight; the tree is the one that `hidden` and `logits` take."""
    c, inits = self.config, nn.initializers
    ones = inits.constant(1 - c.norm_offset)
    params = dict(
      embed=self.param("embed", inits.normal(0.02), (c.vocab_size, c.width))
    )
    for i, depth in enumerate(layer_groups(self.groups, c.depth)):
      stack = nn.vmap(
        layers.LayerWeights,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        axis_size=depth,
      )
      if c.experts:  # stored as one stack, see `remat.run`
        stack = nn.map_variables(
          stack,
          "params",
          lambda v, n=depth: {"params": remat.split_experts(v["params"], n)},
          lambda v: {"params": remat.join_experts(v["params"])},
          init=True,
          mutable=True,
        )
      params[f"layers_{i}"] = remat.join_experts(stack(c, name=f"layers_{i}")())
    params["final_norm"] = self.param("final_norm", ones, (c.width,))
    if not c.tied:
      shape = (c.width, c.vocab_size)
      params["head"] = self.param("head", inits.lecun_normal(), shape)
    return params


def hidden(net: Transformer, params, stream: Stream, constant: Stream | None = None):
  """Final hidden states [B, T, D] of a stream, after the last norm.

  Args:
    net: the architecture and how to compute it.
    params: its parameters; leaves are arrays or weight nodes (`linear`).
    stream: the tokens.
    constant: other tokens of the same rows. They see the stream and are seen by it, but
      have no output, and no gradient flows through them.
  """
  return run(net, params, stream, constant)[0]


def run(
  net: Transformer,
  params,
  stream: Stream,
  constant: Stream | None = None,
  kv=None,
  keep: str | None = None,
):
  """(final hidden states [B, T, D], what each group of layers kept).

  Args:
    net, params, stream, constant: see `hidden`.
    kv: for each group a KV with a leading depth axis on k and v, of tokens that all
      tokens of the stream see; None is none.
    keep: what else to return of every layer, with a leading axis [depth]: "kv", keys
      and values (k, v) [B, K, T, N], to fill a cache; "attention", float32[B, T], how
      much attention each token receives; None is nothing.
  """
  c = net.config
  streams = [stream] if constant is None else [stream, constant]
  embed = _embedding(params)
  xs = tuple(_embed(net, embed, s) for s in streams)
  length = text_length(streams, kv) if needs_length(c) else None
  places = [layers.place(c, s.where, length) for s in streams]
  all_kinds = layers.kinds(c)
  kept, first = [], 0
  depths = layer_groups(net.groups, c.depth)
  policies = remat.by_group(net.remat, depths)
  for i, (depth, policy) in enumerate(zip(depths, policies, strict=True)):
    stack = {"bias": {}} | params[f"layers_{i}"]
    kinds = jax.tree.map(lambda x: x[first : first + depth], all_kinds)  # noqa: B023
    cache = kv and kv[i]
    xs, kept_i = remat.run(c, policy, stack, xs, places, kinds, cache, keep)
    kept.append(kept_i)
    first += depth
  return layers.rms_norm(xs[0], params["final_norm"], c), kept


def logits(net: Transformer, params, hidden):
  """Logits float32[..., V] of final hidden states [..., D]."""
  return to_logits(net, params)(hidden)


def to_logits(net: Transformer, params) -> Callable:
  """The function from final hidden states [..., D] to logits float32[..., V].

  On a mesh the head is gathered here, once, and not where the function is called: a
  loss calls it in a loop.
  """
  c = net.config
  if not c.tied and "head" not in params:
    raise InputError(
      "the model has no head for words, as a reward model has none: it scores texts"
    )
  if c.tied:
    product, head = matmul_transposed, _embedding(params)
  else:
    product, head = linear, sharding.gathered(dict(head=params["head"]))["head"]

  def apply(x):
    y = product(x, head).astype(jnp.float32)
    y = y if c.logit_scale == 1 else y / c.logit_scale
    return soft_cap(y, c.final_softcap)

  return apply


def text_length(streams: list[Stream], kv=None):
  """int32[B], how many positions each row has, for `rope`.

  That is what the first stream says, or else the last position of all tokens, plus 1.
  Decoding says it, so that keys in the cache need not be rotated again later.

  Args:
    streams, kv: as in `run`.
  """
  if streams[0].length is not None:
    return streams[0].length
  places = [s.where for s in streams] + ([kv[0].where] if kv else [])
  ends = [jnp.max((p.position + 1) * (p.segment != 0), 1) for p in places]
  return functools.reduce(jnp.maximum, ends)


def _embedding(params):
  return dense(sharding.gathered(dict(embed=params["embed"]))["embed"])


def _embed(net: Transformer, embed, stream: Stream):
  x = embed[stream.tokens].astype(net.dtype)
  if net.config.embed_scale != 1:
    x = x * jnp.asarray(net.config.embed_scale, x.dtype)
  x = x if stream.noise is None else x + stream.noise.astype(x.dtype)
  return sharding.constrain(x, "batch", "length", None)


def soft_cap(x, cap: float | None):
  """cap * tanh(x / cap), which is smooth and stays within +-cap; x if cap is None."""
  return x if cap is None else cap * jnp.tanh(x / cap)


def full_rows(shape) -> Where:
  """Positions and segments of rows that each hold one text from position 0."""
  position = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)
  return Where(position, jnp.ones(shape, jnp.int32))


def layer_groups(groups: tuple[int, ...], depth: int) -> tuple[int, ...]:
  """The number of layers in each scan; () is one scan over all.

  Raises:
    ValueError: if the groups do not sum to the depth.
  """
  groups = tuple(groups) or (depth,)
  whole = all(isinstance(n, int) and n > 0 for n in groups)
  if not whole or sum(groups) != depth:
    raise ValueError(f"groups {groups} must be positive and sum to depth {depth}")
  return groups


def layer_names(params) -> list[str]:
  """The names of the groups in a parameter tree, in the order of the layers."""
  names = [name for name in params if name.startswith("layers_")]
  return sorted(names, key=lambda name: int(name.removeprefix("layers_")))
