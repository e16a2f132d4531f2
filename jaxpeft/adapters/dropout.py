"""Dropout on the inputs of a low-rank update, in training steps only.

A step gives every adapted weight with dropout a frozen leaf "drop": the data of a PRNG
key of its own. `apply` draws the mask from it, so recomputing a layer in the backward
pass draws the same mask. Where remat computes the feed-forward part in chunks of
tokens, all chunks of a weight share one mask.
Source: Hu et al. 2021; PEFT's `lora_dropout` zeroes the same inputs.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxpeft import tree
from jaxpeft.adapters.base import is_adapted


def dropped(x, frozen, rate: float):
  """x [..., in] with a share `rate` of its entries zero, and the others scaled up.

  Outside of training, where there is no key, it is x itself.
  """
  if "drop" not in frozen:
    return x
  key = jax.random.wrap_key_data(frozen["drop"])
  kept = jax.random.bernoulli(key, 1 - rate, x.shape)
  return jnp.where(kept, x / (1 - rate), jnp.zeros_like(x))


def wanted(params) -> bool:
  """Whether any adapted weight of a tree, or of a partition of it, has dropout."""
  return any(map(_has_dropout, jax.tree.leaves(params, is_leaf=is_adapted)))


def with_keys(params, key):
  """`params` with keys for the masks of one step; a tree without dropout is returned.

  Args:
    params: an adapted tree.
    key: PRNG key of the step.
  """
  if not wanted(params):
    return params
  paths = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_adapted)
  numbers = {tree.path_name(path): i for i, (path, _) in enumerate(paths)}

  def one(path, node):
    if not _has_dropout(node):
      return node
    name = tree.path_name(path)
    own = jax.random.fold_in(key, numbers[name])
    if tree.is_stacked(name):
      own = jax.random.split(own, jax.tree.leaves(node.theta)[0].shape[0])
    drop = jax.random.key_data(own)
    return dataclasses.replace(node, frozen=node.frozen | dict(drop=drop))

  return jax.tree_util.tree_map_with_path(one, params, is_leaf=is_adapted)


def _has_dropout(node) -> bool:
  return is_adapted(node) and getattr(node.adapter, "dropout", 0.0) > 0
