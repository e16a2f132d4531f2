"""Frozen and trainable partitions of one parameter tree, in Optax's masking terms.

Each of the two trees has the structure of the whole, with `optax.MaskedNode()` where
the other one has the leaf. Gradients, optimizer state, donation and checkpoints only
ever see the trainable one: `optax.masked` over the whole tree would pass raw gradients
through to the frozen weights.
"""

import jax
import optax


def trainable_mask(params):
  """A tree of bools like `params`: True for the leaves of every adapter's `theta`."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: any(getattr(key, "name", None) == "theta" for key in path), params
  )


def partition(params, mask):
  """(trainable, frozen): leaves of `params` where `mask` is True, and the others."""
  hole = optax.MaskedNode()
  trainable = jax.tree.map(lambda x, m: x if m else hole, params, mask)
  frozen = jax.tree.map(lambda x, m: hole if m else x, params, mask)
  return trainable, frozen


def combine(trainable, frozen):
  """The inverse of `partition`. It builds no array, so it may be called in the loss."""
  return jax.tree.map(
    lambda t, f: f if _is_hole(t) else t, trainable, frozen, is_leaf=_is_hole
  )


def flatten(tree) -> dict:
  """{"layers_0/attn/q/theta/a": leaf} of a tree of nested dicts and weight nodes."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}


def unflatten(flat: dict, like):
  """The tree `like` with the leaves of `flat`, matched by path, not by order."""
  return jax.tree_util.tree_map_with_path(
    lambda p, _: flat[jax.tree_util.keystr(p, simple=True, separator="/")], like
  )


def _is_hole(x) -> bool:
  return isinstance(x, optax.MaskedNode)
