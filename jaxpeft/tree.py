"""Splits a parameter tree into trainable and frozen partitions, and names its leaves.

Both partitions have the structure of the whole tree, with `optax.MaskedNode()` where a
leaf belongs to the other partition. Gradients, optimizer state, donation and
checkpoints see only the trainable one. `optax.masked` over the whole tree would not do:
it passes raw gradients through to the frozen weights.
"""

import jax
import optax


def path_name(key_path) -> str:
  """A leaf's name, e.g. "layers_0/attn/q/theta/a", from its `jax.tree_util` path."""
  return jax.tree_util.keystr(key_path, simple=True, separator="/")


def is_stacked(path: str) -> bool:
  """Whether the leaf with this name has a leading axis of layers."""
  return path.startswith("layers_")


def trainable_mask(params):
  """A tree of bools like `params`: True for the leaves of every adapter's `theta`."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: any(getattr(key, "name", None) == "theta" for key in path), params
  )


def partition(params, mask):
  """(trainable, frozen): the leaves of `params` where `mask` is True, and the rest."""
  hole = optax.MaskedNode()
  trainable = jax.tree.map(lambda x, m: x if m else hole, params, mask)
  frozen = jax.tree.map(lambda x, m: hole if m else x, params, mask)
  return trainable, frozen


def combine(trainable, frozen):
  """The inverse of `partition`. It creates no array, so a loss may call it freely."""
  return jax.tree.map(
    lambda t, f: f if _is_hole(t) else t, trainable, frozen, is_leaf=_is_hole
  )


def flatten(tree) -> dict:
  """{name: leaf} of a tree of nested dicts and weight nodes, see `path_name`."""
  return {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(flat: dict, like):
  """A tree shaped like `like` with the leaves of `flat`, matched by name, not order."""
  return jax.tree_util.tree_map_with_path(lambda p, _: flat[path_name(p)], like)


def _is_hole(x) -> bool:
  return isinstance(x, optax.MaskedNode)
