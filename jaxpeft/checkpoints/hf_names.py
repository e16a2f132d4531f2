"""Maps the paths of our parameters to the tensors of Hugging Face models."""

import re

import jax
import jax.numpy as jnp

from jaxpeft.checkpoints.families import FAMILIES, LAYER, TOP
from jaxpeft.objectives.head import HEAD
from jaxpeft.transformer.config import ModelConfig
from jaxpeft.transformer.decoder import Transformer, layer_groups
from jaxpeft.tree import path_name

SCORE = "score.weight"  # of their reward models, [1, width]


def modules(params, keep=lambda leaf: True) -> dict[str, tuple]:
  """{path: (leaf, [name of their module for each layer])} of a tree of parameters.

  The list is empty for a leaf that is no projection, such as a norm, and for experts;
  heads count as projections. The names are those of most families; Phi-3's fused
  projections have others.

  Args:
    params: of a Transformer; leaves are arrays or weight nodes.
    keep: a predicate that selects leaves.
  """
  leaves = jax.tree_util.tree_leaves_with_path(
    params, is_leaf=lambda x: not isinstance(x, dict)
  )
  flat = {path_name(p): x for p, x in leaves}
  depths = {
    group_index(p): jax.tree.leaves(x)[0].shape[0]
    for p, x in flat.items()
    if "/experts/" not in p
  }
  found = {}
  for path, leaf in flat.items():
    group, _, inside = path.partition("/")
    names = []
    if path in ("head", HEAD):
      names = [SCORE if path == HEAD else TOP["head"]]
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
    tensors: names of their tensors; one for each weight of a stacked leaf.
    shape: of our leaf.
    stacked: whether the first axis of our leaf is the layer, or layer and expert.
    transpose: whether their tensor is the transpose of ours.
    whole: the shape of each of their tensors.
    start: the row of their tensor where ours begins; above 0 only in a fused tensor.
    theirs: the shape of our part of it.
  """

  def __init__(self, tensors, shape, stacked, transpose, rows=None, start=0):
    self.tensors, self.shape = tensors, shape
    self.stacked, self.transpose = stacked, transpose
    own = shape[1:] if stacked else shape
    self.theirs = tuple(reversed(own)) if transpose else tuple(own)
    self.whole = self.theirs if rows is None else (rows, *self.theirs[1:])
    self.start = start

  @property
  def fused(self) -> bool:
    """Whether other leaves lie in the same tensors."""
    return self.whole != self.theirs

  def slot(self, leaf, i: int):
    """A view of our leaf, in their orientation, that tensor i fills."""
    view = leaf[i] if self.stacked else leaf
    return view.T if self.transpose else view

  def within(self, index: tuple[slice, ...]) -> tuple[slice, ...]:
    """The index in their whole tensor of an index in our part of it."""
    first = index[0].indices(self.theirs[0])
    rows = slice(first[0] + self.start, first[1] + self.start)
    return (rows, *index[1:])


def places(config: ModelConfig, groups, score: bool = False) -> dict[str, Place]:
  """{path: its `Place`} of every parameter of `Transformer(config, groups)`.

  Args:
    config, groups: of the transformer.
    score: whether the model is a reward model: it has a head for scores (see
      `objectives.head`) and none for words.
  """
  model = Transformer(config, groups=groups)
  tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
  flat = {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(shapes)}
  if score:
    flat = {path: x for path, x in flat.items() if path != "head"}
  depths = layer_groups(groups, config.depth)
  family, found = FAMILIES[config.family], {}
  for path, leaf in flat.items():
    if path in TOP:
      found[path] = Place([TOP[path]], leaf.shape, False, path == "head")
      continue
    group, _, inside = path.partition("/")
    index = group_index(group)
    name, parts = family.tensor(inside)
    first = sum(depths[:index])
    names = [
      f"model.layers.{i}.{name.format(expert=e)}"
      for i in range(first, first + depths[index])
      for e in range(config.experts if "{expert}" in name else 1)
    ]
    rows = [flat[f"{group}/{part}"].shape[-1] for part in parts]
    fused = dict(rows=sum(rows), start=sum(rows[: parts.index(inside)]))
    found[path] = Place(
      names, leaf.shape, True, leaf.ndim == 3, **fused if len(parts) > 1 else {}
    )
  if score:
    found[HEAD] = Place([SCORE], (config.width, 1), False, True)
  return found
