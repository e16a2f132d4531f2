"""How arrays lie on a mesh of devices: one table of paths, logical axes, mesh axes.

The mesh has three axes: `data` and `fsdp` cut the rows of a batch, `fsdp` also every
weight, which is gathered when its layer's turn comes, and the third heads, feed-forward
and vocabulary. That one is called `tensor`, or `sequence` where it cuts tokens between
layers as well. All else is XLA's partitioner: the model has constraints, and no
collective. `jax.set_mesh` puts a mesh in force; without one nothing here does anything.
Source: GSPMD, Xu et al. 2021, arXiv:2105.04663; Korthikanti et al. 2022 (sequence).
"""

import functools
import math
import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxpeft.errors import InputError
from jaxpeft.linear import is_node

# logical axis -> axes of the mesh, of which one that is not there counts nothing
TABLE = {
  "batch": ("data", "fsdp"),
  "length": ("sequence",),
  "heads": ("tensor", "sequence"),
  "ff": ("tensor", "sequence"),
  "vocab": ("tensor", "sequence"),
  "width": ("fsdp",),
}
# end of a leaf's path -> logical axes of the weight [in, out] there
WEIGHTS = {
  r"attn/[qkv]": ("width", "heads"),
  r"attn/o": ("heads", "width"),
  r"mlp/(gate|up)": ("width", "ff"),
  r"mlp/down": ("ff", "width"),
  r"embed": ("vocab", "width"),
  r"head": ("width", "vocab"),
  r"bias/[qkv]": ("heads",),
  r"bias/(gate|up)": ("ff",),
}
_SMALL = 2**14  # numbers of a leaf that fsdp leaves whole, unless its weight's axes are


def mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, sequence: bool = False):
  """A mesh over the first devices of all processes; None for a single device.

  Args:
    data: copies of the weights; rows are cut over `data` times `fsdp`.
    fsdp: pieces of every weight.
    tensor: pieces of heads, feed-forward and vocabulary.
    sequence: whether `tensor` cuts the tokens between layers, too.
  Raises:
    InputError: sizes that do not fit the devices; -1, once, is what is left of them.
  """
  sizes = fill(dict(data=data, fsdp=fsdp, tensor=tensor), jax.device_count())
  count = math.prod(sizes.values())
  if jax.process_count() > 1 and count < jax.device_count():
    raise InputError(
      f"mesh of {count} devices: {jax.process_count()} processes have "
      f"{jax.device_count()}, and all must be in it; set mesh.fsdp=-1"
    )
  if count == 1:
    return None
  return named(sizes, sequence, jax.devices()[:count])


def named(sizes: dict[str, int], sequence: bool, devices) -> Mesh:
  """The mesh of these sizes, in the order data, fsdp, tensor."""
  names = ("data", "fsdp", "sequence" if sequence else "tensor")
  return jax.make_mesh(
    tuple(sizes.values()), names, axis_types=(AxisType.Auto,) * 3, devices=devices
  )


def fill(sizes: dict[str, int], devices: int) -> dict[str, int]:
  """Sizes with -1 replaced by what is left of so many devices.

  Raises:
    InputError: no such size, or more than there are.
  """
  rest = [name for name, size in sizes.items() if size == -1]
  shown = ", ".join(f"{name}={size}" for name, size in sizes.items())
  if len(rest) > 1 or any(n < 1 and n != -1 for n in sizes.values()):
    raise InputError(f"mesh {shown}: sizes are at least 1, and one may be -1, the rest")
  known = math.prod(n for n in sizes.values() if n != -1)
  if known > devices or (rest and devices % known):
    raise InputError(
      f"mesh {shown}: {known} does not fit into {devices} devices; choose divisors of "
      f"{devices}, whose product is {devices} at most"
    )
  return {name: devices // known if n == -1 else n for name, n in sizes.items()}


def current() -> Mesh | None:
  """The mesh in force with its devices; None without one, and inside jit."""
  try:
    found = jax.sharding.get_mesh()
  except ValueError:  # inside jit
    return None
  return None if found.empty else found


def check(config, rows: int = 0, tokens: int = 0, quantized: bool = False):
  """Refuses a model or a batch that the mesh in force cannot cut into equal pieces.

  Args:
    config: a `ModelConfig`.
    rows: of one microbatch; 0 is any.
    tokens: of a row; 0 is any.
    quantized: whether weights are in 4 bits, which are cut between groups of 128.
  Raises:
    InputError: names the axis, the dimension, and the sizes that would do.
  """
  group = 128 if quantized else 1
  dimensions = [
    ("batch", "train.batch_size / train.accumulate", rows, 1),
    ("length", "data.max_tokens", tokens, 1),
    ("heads", "the model's heads", config.heads, 1),
    ("heads", "its heads of keys and values", config.kv_heads, 1),
    ("heads", "inputs of attention's output", config.heads * config.head_dim, group),
    ("ff", "its feed-forward width", config.ff, group),
    ("vocab", "its vocabulary", config.vocab_size, 1),
    ("width", "its width", config.width, 1),
  ]
  for logical, what, size, unit in dimensions:
    ways = cut(logical)
    if size % (unit * ways):
      axes = " * ".join(f"mesh.{a}" for a in TABLE[logical] if _size(a) > 1)
      axes = axes.replace("sequence", "tensor")  # the key of the config
      units = f" (in groups of {unit})" if unit > 1 else ""
      fit = [n for n in range(1, 257) if size % (unit * n) == 0]
      raise InputError(
        f"{axes} = {ways} does not divide {what}, {size}{units}; "
        f"sizes that do: {', '.join(map(str, fit))}"
      )


def cut(*logical: str) -> int:
  """Into how many pieces the mesh in force cuts these logical axes."""
  return math.prod(_size(axis) for name in logical for axis in TABLE[name])


def constrain(x, *logical: str | None):
  """x with its axes cut as their logical names say; None is whole."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  axes = [
    # Less than a piece each: rows or tokens that are few stay whole.
    _mesh_axes(name) if name and n >= cut(name) else None
    for name, n in zip(logical, x.shape, strict=True)
  ]
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def stored(tree):
  """A tree with weights, inside jit, cut as `specs` has them."""
  return _constrain_tree(tree, specs)


def gathered(tree):
  """Weights, inside jit, whole but for what `tensor` cuts: in 4 bits, if they are."""
  if _size("fsdp") == 1:
    return tree
  return _constrain_tree(tree, functools.partial(specs, without=("fsdp",)))


def replicated(tree):
  """A tree, inside jit, whole on every device."""
  return _constrain_tree(tree, lambda t: jax.tree.map(lambda _: PartitionSpec(), t))


def _constrain_tree(tree, of):
  if jax.sharding.get_abstract_mesh().empty:
    return tree
  return jax.tree.map(jax.lax.with_sharding_constraint, tree, of(tree))


def shardings(tree, on: Mesh):
  """`NamedSharding`s of a tree with weights."""
  with jax.sharding.use_abstract_mesh(on.abstract_mesh):
    return jax.tree.map(lambda spec: NamedSharding(on, spec), specs(tree))


def place(tree):
  """A tree with weights, put on the mesh in force; as it is without one.

  In several processes every one of them has the whole tree.
  """
  on = current()
  if on is None:
    return tree
  return jax.tree.map(_put, tree, shardings(tree, on))


def place_batch(batch: dict[str, np.ndarray]) -> dict:
  """Microbatches [n, B, ...] with their rows cut; each process moves its own only."""
  on = current()
  if on is None:
    return batch
  sharding = NamedSharding(on, PartitionSpec(None, _mesh_axes("batch")))
  # Half the time of device_put, which counts at every step.
  make = jax.make_array_from_callback
  return {key: make(x.shape, sharding, x.__getitem__) for key, x in batch.items()}


def to_host(x) -> np.ndarray:
  """The whole array; in several processes all of them must ask for it."""
  if isinstance(x, jax.Array) and not x.is_fully_addressable:
    x = jax.device_put(x, NamedSharding(current(), PartitionSpec()))
  return np.asarray(x)


def _put(x, sharding):
  if isinstance(x, jax.Array) and not x.is_fully_addressable:
    # One after the other: each has collectives, and processes must agree on the order.
    return jax.block_until_ready(jax.device_put(x, sharding))
  if jax.process_count() == 1:
    return jax.device_put(x, sharding)
  host = np.asarray(x)
  return jax.make_array_from_callback(x.shape, sharding, lambda index: host[index])


def specs(tree, without: tuple[str, ...] = ()):
  """`PartitionSpec`s of a tree with weights, adapters, or an optimizer's state of them.

  A leaf's axes come from the weight in whose place it stands (`WEIGHTS`), through the
  letters i and o in the `dims` of the nodes around it. A larger leaf that `fsdp` does
  not cut this way is cut along its longest other axis. What does not divide is whole.

  Args:
    tree: nested dicts of arrays and weight nodes, also of one layer alone.
    without: axes of the mesh that are to cut nothing.
  """

  def one(path, node):
    path = jax.tree_util.keystr(path, simple=True, separator="/")
    axes = next(
      (axes for end, axes in WEIGHTS.items() if re.search(rf"(^|/){end}$", path)), ()
    )
    return jax.tree_util.tree_map_with_path(
      lambda inside, leaf: _spec(leaf, _letters(node, inside), axes, without), node
    )

  return jax.tree_util.tree_map_with_path(one, tree, is_leaf=is_node)


def _letters(node, path) -> str | None:
  """What the innermost node around a leaf calls its axes; None for a plain array."""
  letters, dims, outer = "" if path else None, {}, {}
  for key in path:
    if hasattr(node, "dims"):
      # What stands in for a leaf of another node has that leaf's axes as its i and o.
      dims, outer = node.dims, dict(zip("io", letters, strict=False))
    is_field = hasattr(key, "name")
    letters = dims.get(key.name if is_field else key.key, "")
    letters = "".join(outer.get(letter, letter) for letter in letters)
    node = getattr(node, key.name) if is_field else node[key.key]
  return letters


def _spec(leaf, letters, axes, without) -> PartitionSpec:
  """Of one leaf; see `specs`."""
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
  cuts = [_mesh_axes(name) if name else () for name in logical]
  cuts = [c if n % _ways(c) == 0 else () for c, n in zip(cuts, shape, strict=True)]
  free = "fsdp" not in [axis for c in cuts for axis in c] and _size("fsdp") > 1
  if free and math.prod(shape) >= _SMALL:
    order = sorted(range(len(shape)), key=lambda i: -shape[i])
    for i in order:
      if shape[i] % (_ways(cuts[i]) * _size("fsdp")) == 0:
        cuts[i] = (*cuts[i], "fsdp")
        break
  cuts = [tuple(axis for axis in c if axis not in without) or None for c in cuts]
  while cuts and cuts[-1] is None:
    cuts.pop()  # as a compiled program names its results, or the next would be another
  return PartitionSpec(*[None] * lead, *cuts) if cuts else PartitionSpec()


def _mesh_axes(logical: str) -> tuple[str, ...]:
  return tuple(axis for axis in TABLE[logical] if _size(axis) > 1)


def _ways(axes: tuple[str, ...]) -> int:
  return math.prod(map(_size, axes))


def _size(axis: str) -> int:
  return jax.sharding.get_abstract_mesh().shape.get(axis, 1)
