"""Sharding rules: which axis of a leaf is split over which axis of the device mesh.

`WEIGHTS` gives the logical axes of a weight by the end of its path, for example
("width", "heads") for attn/q. `TABLE` gives the mesh axes that split a logical axis.
`specs` applies both to a whole tree, including adapters, NF4 weights and an optimizer's
state.
"""

import math
import re

import jax
from jax.sharding import PartitionSpec

from jaxpeft.linear import is_node
from jaxpeft.tree import path_name

# logical axis -> mesh axes that split it; those that the mesh does not have are ignored
TABLE = {
  "batch": ("data", "fsdp"),
  "length": ("sequence",),
  "heads": ("tensor", "sequence"),
  "ff": ("tensor", "sequence"),
  "vocab": ("tensor", "sequence"),
  "width": ("fsdp",),
}
# end of a weight's path (regex) -> logical axes of the weight, [in, out]
WEIGHTS = {
  r"attn/[qkv]": ("width", "heads"),
  r"attn/o": ("heads", "width"),
  r"(mlp|experts)/(gate|up)": ("width", "ff"),
  r"(mlp|experts)/down": ("ff", "width"),
  r"embed": ("vocab", "width"),
  r"head": ("width", "vocab"),
  r"bias/[qkv]": ("heads",),
  r"bias/(gate|up)": ("ff",),
}
# Leaves with fewer elements are split over fsdp only where `WEIGHTS` says so.
_SMALL = 2**14


def specs(tree, without: tuple[str, ...] = ()):
  """`PartitionSpec`s of a tree with weights, adapters, or an optimizer's state.

  `WEIGHTS` gives the logical axes of the weight at a path. A node there (an adapter or
  an NF4 weight) names the axes of each of its leaves in `dims`: the letters i and o are
  the weight's input and output, and other letters, such as r for the rank, are no
  logical axis. So LoRA's a [i, r] on attn/q is split as ("width", None). Axes before
  these, such as a stack of layers, stay whole.

  A large leaf that `fsdp` does not split by these rules is split by it along its
  longest axis that can be divided.

  Args:
    tree: nested dicts of arrays and weight nodes, stacked or of a single layer.
    without: mesh axes to leave out of the result.
  """

  def one(path, node):
    path = path_name(path)
    axes = next(
      (axes for end, axes in WEIGHTS.items() if re.search(rf"(^|/){end}$", path)), ()
    )
    return jax.tree_util.tree_map_with_path(
      lambda inside, leaf: _spec(leaf, _letters(node, inside), axes, without), node
    )

  return jax.tree_util.tree_map_with_path(one, tree, is_leaf=is_node)


def mesh_axes(logical: str) -> tuple[str, ...]:
  """The axes of the current mesh that split a logical axis."""
  return tuple(axis for axis in TABLE[logical] if size(axis) > 1)


def size(axis: str) -> int:
  """Size of an axis of the current mesh; 1 if there is no such axis."""
  return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def _letters(node, path) -> str | None:
  """The axis letters of a leaf in its innermost node; None if it is in no node."""
  if not path:
    return None
  letters, dims, outer = "", dict[str, str](), dict[str, str]()
  for key in path:
    if hasattr(node, "dims"):
      # For a node inside a node, i and o are the axes of the leaf that it replaces.
      dims, outer = node.dims, dict(zip("io", letters, strict=False))
    is_field = hasattr(key, "name")
    letters = dims.get(key.name if is_field else key.key, "")
    letters = "".join(outer.get(letter, letter) for letter in letters)
    node = getattr(node, key.name) if is_field else node[key.key]
  return letters


def _spec(leaf, letters, axes, without) -> PartitionSpec:
  """The spec of one leaf, from its letters and the logical axes of its weight."""
  if letters is None or (letters == "io" and len(axes) == 1):
    logical = list(axes)
  else:
    known = dict(zip("io", axes, strict=True)) if len(axes) == 2 else {}
    logical = [known.get(letter) for letter in letters]
  ndim = getattr(leaf, "ndim", 0)
  if len(logical) > ndim:
    return PartitionSpec()  # e.g. a factored moment of an optimizer
  lead = ndim - len(logical)
  shape = leaf.shape[lead:]
  cuts = [mesh_axes(name) if name else () for name in logical]
  cuts = [
    c if n % math.prod(map(size, c)) == 0 else ()
    for c, n in zip(cuts, shape, strict=True)
  ]
  free = "fsdp" not in [axis for c in cuts for axis in c] and size("fsdp") > 1
  if free and math.prod(shape) >= _SMALL:
    order = sorted(range(len(shape)), key=lambda i: -shape[i])
    for i in order:
      if shape[i] % (math.prod(map(size, cuts[i])) * size("fsdp")) == 0:
        cuts[i] = (*cuts[i], "fsdp")
        break
  cuts = [tuple(axis for axis in c if axis not in without) or None for c in cuts]
  while cuts and cuts[-1] is None:
    cuts.pop()  # the form in which jit returns specs; any other recompiles
  return PartitionSpec(*[None] * lead, *cuts) if cuts else PartitionSpec()
