"""Maps the paths of our parameters to the tensor names of Hugging Face models."""

import re

import jax
import jax.numpy as jnp

from jaxpeft.transformer.config import ModelConfig
from jaxpeft.transformer.decoder import Transformer, layer_groups
from jaxpeft.tree import path_name

# Our name inside a layer -> theirs. Their matrices are [out, in], ours are [in, out].
LAYER = {
  **{f"attn/{n}": f"self_attn.{n}_proj.weight" for n in "qkvo"},
  **{f"mlp/{n}": f"mlp.{n}_proj.weight" for n in ("gate", "up", "down")},
  **{f"bias/{n}": f"self_attn.{n}_proj.bias" for n in "qkvo"},
  **{f"bias/{n}": f"mlp.{n}_proj.bias" for n in ("gate", "up", "down")},
  "norm/attn": "input_layernorm.weight",
  "norm/mlp": "post_attention_layernorm.weight",
  "norm/q": "self_attn.q_norm.weight",
  "norm/k": "self_attn.k_norm.weight",
}
GEMMA2 = {
  "norm/attn_post": "post_attention_layernorm.weight",
  "norm/mlp": "pre_feedforward_layernorm.weight",
  "norm/mlp_post": "post_feedforward_layernorm.weight",
}
TOP = {
  "embed": "model.embed_tokens.weight",
  "final_norm": "model.norm.weight",
  "head": "lm_head.weight",
}


def modules(params, keep=lambda leaf: True) -> dict[str, tuple]:
  """{path: (leaf, [name of their module for each layer])} of a tree of parameters.

  The list is empty for a leaf that is no projection, such as a norm; the head counts as
  a projection.

  Args:
    params: of a Transformer; leaves are arrays or weight nodes.
    keep: a predicate that selects leaves.
  """
  leaves = jax.tree_util.tree_leaves_with_path(
    params, is_leaf=lambda x: not isinstance(x, dict)
  )
  flat = {path_name(p): x for p, x in leaves}
  depths = {group_index(p): jax.tree.leaves(x)[0].shape[0] for p, x in flat.items()}
  found = {}
  for path, leaf in flat.items():
    group, _, inside = path.partition("/")
    names = []
    if path == "head":
      names = [TOP["head"]]
    elif inside.startswith(("attn/", "mlp/")):
      first = sum(depth for g, depth in depths.items() if 0 <= g < group_index(group))
      layers = range(first, first + depths[group_index(group)])
      names = [f"model.layers.{i}.{LAYER[inside]}" for i in layers]
    if keep(leaf):
      found[path] = (leaf, [name.removesuffix(".weight") for name in names])
  return found


def group_index(path: str) -> int:
  """The i of a path that starts with layers_i; -1 for any other path."""
  found = re.match(r"layers_(\d+)", path)
  return int(found[1]) if found else -1


class Place:
  """The tensors that one of our leaves is made of.

  Attributes:
    tensors: names of their tensors; one for each layer of a stacked leaf.
    shape: of our leaf.
    stacked: whether the first axis of our leaf is the layer.
    transpose: whether their tensor is the transpose of ours.
    theirs: the shape of each of their tensors.
  """

  def __init__(self, tensors, shape, stacked, transpose):
    self.tensors, self.shape = tensors, shape
    self.stacked, self.transpose = stacked, transpose
    own = shape[1:] if stacked else shape
    self.theirs = tuple(reversed(own)) if transpose else tuple(own)

  def slot(self, leaf, i: int):
    """A view of our leaf, in their orientation, that tensor i fills."""
    view = leaf[i] if self.stacked else leaf
    return view.T if self.transpose else view


def places(config: ModelConfig, groups) -> dict[str, Place]:
  """{path: its `Place`} of every parameter of `Transformer(config, groups)`."""
  model = Transformer(config, groups=groups)
  tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
  names = LAYER | (GEMMA2 if config.post_norms else {})
  depths = layer_groups(groups, config.depth)
  found = {}
  for key_path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
    path = path_name(key_path)
    if path in TOP:
      found[path] = Place([TOP[path]], leaf.shape, False, path == "head")
      continue
    group, _, inside = path.partition("/")
    index = group_index(group)
    first = sum(depths[:index])
    tensors = [
      f"model.layers.{first + i}.{names[inside]}" for i in range(leaf.shape[0])
    ]
    found[path] = Place(tensors, leaf.shape, True, leaf.ndim == 3)
  return found
