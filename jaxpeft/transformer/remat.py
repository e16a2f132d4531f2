"""Layers one after the other, and what their backward pass recomputes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxpeft import tree
from jaxpeft.parallel import sharding
from jaxpeft.transformer.attention import KV
from jaxpeft.transformer.config import ModelConfig
from jaxpeft.transformer.layers import Kind, layer

# What each policy keeps of a layer for the backward pass, which recomputes the rest.
REMAT = {
  "none": "everything",
  "products": "the results of products with weights, and of attention",
  "layer": "its input",
  "layer_kv": "its input; for a constant stream its keys and values instead",
  "segments": "its input in every k-th layer only, k near the root of the depth",
  "attention": "its input, and the results of attention and its four products",
  "offload": "its input, moved to the host's memory; on a CPU the same as layer",
}
# The names (`checkpoint_name`) that a policy saves besides the input.
_SAVED_NAMES = {
  "products": ("product", "attention"),
  "attention": ("attention",),
  "layer_kv": ("constant_kv",),
}
_OFFLOAD = jax.checkpoint_policies.save_and_offload_only_these_names(
  names_which_can_be_saved=[],
  names_which_can_be_offloaded=["hidden"],
  offload_src="device",
  offload_dst="pinned_host",
)


def run(
  c: ModelConfig, remat: str, stack, xs, places, kinds: Kind, cache=None, keep=None
):
  """Layers one after the other, over their stacked weights.

  Args:
    c: the architecture.
    remat: a key of `REMAT`.
    stack: the weights that `LayerWeights` declares, with a leading axis of layers.
    xs: tuple of hidden states [B, T, D], one or two streams; see `layer`.
    places: a `Place` for each stream.
    kinds: the stacked `Kind` of the layers.
    cache: KV with a leading axis of layers on k and v, of tokens that all tokens see;
      or None.
    keep: what to return of each layer, see `layer`.
  Returns:
    (xs, what was kept, with a leading axis of layers).
  """
  stack = split_experts(stack, len(kinds.window))
  outside: Any = cache and cache.where
  chunked = remat not in ("none", "products")

  def body(xs, item):
    w, kind, kv = item
    xs = checkpoint_name(xs, "hidden") if remat == "offload" else xs
    return layer(
      c, w, xs, places, kind, kv and KV(kv[0], kv[1], outside), chunked, keep
    )

  again = functools.partial(jax.checkpoint, prevent_cse=False)
  if remat == "none" and sharding.cut("width") > 1:
    body = again(body, policy=_all_but_gathered)
  if remat == "segments" and cache is None and not keep:
    return _segments(again, body, xs, stack, kinds), None
  if remat in _SAVED_NAMES:
    policy = jax.checkpoint_policies.save_only_these_names(*_SAVED_NAMES[remat])
    body = again(body, policy=policy)
  elif remat == "offload":
    body = again(body, policy=_OFFLOAD)
  elif remat != "none":
    body = again(body)
  return lax.scan(body, xs, (stack, kinds, cache and cache[:2]))


def split_experts(stack, depth: int):
  """The stack with leaves of experts as [layers, experts, ...], as `layer` needs them.

  A tree of parameters has them as one stack [layers * experts, ...]. So code that
  treats the weights of a stack one by one, such as an adapter's, needs no other case.
  """
  split = lambda x: x.reshape(depth, -1, *x.shape[1:])  # noqa: E731
  return _map_experts(split, stack)


def join_experts(stack):
  """The inverse of `split_experts`."""
  return _map_experts(lambda x: x.reshape(-1, *x.shape[2:]), stack)


def _map_experts(f, stack):
  if "experts" not in stack:
    return stack
  return {**stack, "experts": jax.tree.map(f, stack["experts"])}


def _all_but_gathered(primitive, *_, **__) -> bool:
  """Saves everything except the weights that `fsdp` gathered for this layer."""
  return primitive.name != "sharding_constraint"


def _segments(again, body, xs, stack, kinds):
  """The layers in segments; only the inputs of segments are kept between them."""
  depth = len(kinds.window)
  size = max(
    (k for k in range(1, depth + 1) if depth % k == 0), key=lambda k: -k - depth / k
  )
  # Only theta is scanned over: a scan over frozen weights would copy a whole segment of
  # them out of their stack. A layer's frozen weights are looked up inside the
  # recomputed function; looked up outside, they would be saved for the backward pass.
  theta, frozen = tree.partition(stack, tree.trainable_mask(stack))

  @again
  def step(xs, item):
    i, part = item
    rest, kind = jax.tree.map(
      lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), (frozen, kinds)
    )
    return body(xs, (tree.combine(part, rest), kind, None))

  def segment(xs, items):
    return lax.scan(step, xs, items)[0], None

  items = jax.tree.map(
    lambda x: x.reshape(-1, size, *x.shape[1:]), (jnp.arange(depth), theta)
  )
  return lax.scan(again(segment), xs, items)[0]


def by_group(remat: str, groups: tuple[int, ...]) -> list[str]:
  """The policy of each group of layers, from one name or comma-separated names.

  Raises:
    ValueError: if there are several names, but not one for each group.
  """
  names = remat.split(",")
  if len(names) not in (1, len(groups)):
    raise ValueError(f"{remat!r} names {len(names)} for {len(groups)} groups of layers")
  return names * len(groups) if len(names) == 1 else names
