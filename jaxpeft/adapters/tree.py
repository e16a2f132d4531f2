"""Matches rules to the weights of a parameter tree; adapts, merges and counts them.

Parameters are nested dicts of arrays and weight nodes (`linear`). A path such as
"layers_0/attn/q" names a weight. Weights under "layers_*" are stacks [L, in, out] of L
layers; all others are single arrays.
"""

import dataclasses
import re
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpeft import console, tree
from jaxpeft.adapters.attach import is_attached
from jaxpeft.adapters.base import Adapted, Adapter, is_adapted
from jaxpeft.adapters.initialize import initialize
from jaxpeft.errors import InputError
from jaxpeft.linear import is_node


class Count(NamedTuple):
  """The sizes of an adapted model."""

  trainable: int  # trained parameters
  total: int  # all stored numbers, frozen factors included, index arrays excluded
  bytes: int  # bytes of the trained parameters


def match(params, rules: Mapping[str, Adapter]) -> dict[str, Adapter]:
  """{path: adapter} of the weights that the rules match.

  Args:
    params: a parameter tree.
    rules: {regex: adapter}; a regex must match the whole path of a weight.
  Raises:
    InputError: a rule matches nothing, two rules match one weight, or a weight is
      already adapted or cannot be adapted by its method.
  """
  leaves = nodes(params)
  found: dict[str, tuple[str, Adapter]] = {}
  for pattern, adapter in rules.items():
    try:
      regex = re.compile(pattern)
    except re.error as e:
      raise InputError(f"adapter rule {pattern!r} is not a valid regex: {e}") from e
    paths = [path for path in leaves if regex.fullmatch(path)]
    if not paths:
      shown = ", ".join(sorted(leaves))
      raise InputError(f"adapter rule {pattern!r} matches none of: {shown}")
    for path in paths:
      leaf = leaves[path]
      if path in found:
        raise InputError(
          f"two adapter rules match {path}: {found[path][0]!r} and {pattern!r}; "
          "make them disjoint"
        )
      if is_adapted(leaf):
        raise InputError(
          f"{path} is adapted already; merge it first, or adapt the base"
        )
      shape = leaf.shape[tree.is_stacked(path) :]
      if adapter.matrix_only and len(shape) != 2:
        raise InputError(
          f"{type(adapter).__name__} takes matrices, but rule {pattern!r} matches "
          f"{path} {list(shape)}; narrow the rule, or use Full for this weight"
        )
      adapter.check(path, shape)
      found[path] = (pattern, adapter)
  return {path: adapter for path, (_, adapter) in found.items()}


def adapt(params, rules: Mapping[str, Adapter], key, gradients=None):
  """`params` with an `Adapted` node in place of every weight that a rule matches.

  Args:
    params: a parameter tree.
    rules: {regex: adapter}, see `match`.
    key: PRNG key. The key of each weight depends only on this one and on its path.
    gradients: {path: the loss's gradient of the weight}, which LoRA-GA and LoRA-One
      need, see `objectives.gradients`; {} if their theta is loaded afterwards, so that
      its initial values do not matter.
  Raises:
    InputError: see `match`; or a method needs gradients and they were not given.
  """
  found = match(params, rules)
  needy = [path for path, adapter in found.items() if adapter.needs_gradient]
  lacking = [p for p in needy if gradients != {} and p not in (gradients or {})]
  if lacking:
    raise InputError(
      f"{type(found[lacking[0]]).__name__} on {lacking[0]} starts from the loss's "
      "gradient; compute it with jaxpeft.gradients and pass adapt(..., gradients=)"
    )
  leaves = nodes(params)
  layers = sum(leaves[p].shape[0] if tree.is_stacked(p) else 1 for p in found)
  with console.Bar("adapting", layers, "weights") as bar:

    def replace(path, leaf):
      path = tree.path_name(path)
      if path not in found:
        return leaf
      own = jax.random.fold_in(key, zlib.crc32(path.encode()))
      w = (leaf,)
      if path in needy:
        w += (gradients[path] if gradients else jnp.zeros(leaf.shape),)
      return initialize(found[path], own, w, path, tree.is_stacked(path), bar)

    return jax.tree_util.tree_map_with_path(replace, params, is_leaf=is_node)


def merge(params, dtype=None):
  """`params` with a plain array in place of every `Adapted` node.

  Args:
    params: an adapted tree.
    dtype: dtype of the merged weights, which are computed in float32; None takes the
      dtype of each weight's frozen part (float32 for Full, which has none).
  Raises:
    InputError: several adapters are attached.
  """

  def one(path, node):
    if is_attached(node):
      raise InputError("several adapters are attached; detach them before merging")
    if not is_adapted(node):
      return node
    to = dtype or next((x.dtype for k, x in node.frozen.items() if k in "wu"), None)
    stacked = tree.is_stacked(tree.path_name(path))
    return _merge(node, stacked, jnp.dtype(to or jnp.float32))

  return jax.tree_util.tree_map_with_path(one, params, is_leaf=is_node)


def reference(params):
  """The base's parameters, as the adapted tree holds them, without a gradient.

  Nothing is copied: where a method keeps W, that array stands in the node's place;
  otherwise the node gets the theta that changes nothing.

  Args:
    params: an adapted tree, or a partly adapted one. Weights that no method adapts are
      taken as they are.
  Raises:
    InputError: a method that does not keep W and has no such theta, or several adapters
      are attached.
  """

  def one(path, node):
    if is_attached(node):
      raise InputError("several adapters are attached; detach all to have the base")
    if not is_adapted(node):
      return node
    if not node.adapter.has_identity:
      raise InputError(no_reference(node.adapter, tree.path_name(path)))
    if node.adapter.keeps_base and "w" in node.frozen:
      return node.frozen["w"]
    theta = node.adapter.identity(node.frozen, node.theta)
    return dataclasses.replace(node, theta=theta)

  found = jax.tree_util.tree_map_with_path(one, params, is_leaf=is_node)
  return jax.lax.stop_gradient(found)


def no_reference(adapter: Adapter, where: str) -> str:
  """Why a tree adapted by this method at this place does not contain its base."""
  return (
    f"{type(adapter).__name__} on {where} does not keep the base's weight, so the tree "
    "holds no base model to compare with"
  )


def count(params) -> Count:
  """The sizes of an adapted tree, which may be abstract (`jax.eval_shape`)."""
  nodes = jax.tree.leaves(params, is_leaf=is_node)
  theta = jax.tree.leaves([n.theta for n in nodes if is_adapted(n)])
  is_leaf = lambda x: is_node(x) and not is_adapted(x)  # noqa: E731
  stored = [
    x
    for x in jax.tree.leaves(params, is_leaf=is_leaf)
    if jnp.issubdtype(x.dtype, jnp.floating)
  ]
  return Count(
    trainable=sum(x.size for x in theta),
    total=sum(x.size for x in stored),
    bytes=sum(x.size * x.dtype.itemsize for x in theta),
  )


@jax.jit(static_argnums=(1, 2))
def _merge(node, stacked, dtype):
  dense = jax.vmap(lambda n: n.dense()) if stacked else (lambda n: n.dense())
  return dense(node).astype(dtype)


def kept(params) -> dict:
  """{path: leaf} of the frozen leaves that an adapter's file stores besides theta.

  These are the leaves that a method lists in `Adapter.keeps`, because they cannot be
  computed again from the base and the key: LoRA-GA's initial factors, for instance.
  """
  return {
    f"{path}/frozen/{name}": node.frozen[name]
    for path, node in nodes(params).items()
    if is_adapted(node)
    for name in node.adapter.keeps
  }


def put_kept(params, leaves: Mapping):
  """`params` with its `kept` leaves replaced by those of `leaves`, {path: leaf}."""

  def put(path, node):
    if not is_adapted(node):
      return node
    path = tree.path_name(path)
    new = {name: leaves[f"{path}/frozen/{name}"] for name in node.adapter.keeps}
    return dataclasses.replace(node, frozen=node.frozen | new)

  return jax.tree_util.tree_map_with_path(put, params, is_leaf=is_node)


def nodes(params) -> dict:
  """{path: array or weight node} of a tree."""
  leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_node)
  return {tree.path_name(p): x for p, x in leaves}


def weight_shape(path: str, node: Adapted) -> tuple[int, ...]:
  """[in, out] of the weight that an adapted node represents, without the layer axis."""
  return jax.eval_shape(
    lambda n: _merge(n, tree.is_stacked(path), jnp.float32), node
  ).shape[tree.is_stacked(path) :]
