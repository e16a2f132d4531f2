"""How arrays lie on a mesh of devices: two tables, from paths to axes of the mesh.

The mesh has three axes. `data` and `fsdp` split the rows of a batch; `fsdp` also splits
every weight, which is gathered when its layer's turn comes; `tensor` splits heads,
feed-forward width and vocabulary, and is named `sequence` if it also splits tokens
between layers. XLA's partitioner does the rest: the model has constraints, but no
collective. `jax.set_mesh` puts a mesh in force; without one, these functions do
nothing.
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

# logical axis -> axes of the mesh; axes that the mesh does not have are ignored
TABLE = {
  "batch": ("data", "fsdp"),
  "length": ("sequence",),
  "heads": ("tensor", "sequence"),
  "ff": ("tensor", "sequence"),
  "vocab": ("tensor", "sequence"),
  "width": ("fsdp",),
}
# end of a weight's path -> logical axes of the weight [in, out]
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
_SMALL = (
  2**14
)  # leaves with fewer elements stay whole on fsdp, unless WEIGHTS splits them


def mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, sequence: bool = False):
  """A mesh over the first devices of all processes; None for a single device.

  Args:
    data: copies of the weights; rows are split over `data` times `fsdp`.
    fsdp: pieces of every weight.
    tensor: pieces of heads, feed-forward width and vocabulary.
    sequence: whether `tensor` also splits the tokens between layers.
  Raises:
    InputError: sizes that do not fit the devices. One size may be -1: the rest.
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
  """The sizes, with -1 replaced by the number of devices that is left.

  Raises:
    InputError: an invalid size, or more devices than there are.
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
  """The mesh in force, with its devices; None if there is none, and inside jit."""
  try:
    found = jax.sharding.get_mesh()
  except ValueError:  # inside jit
    return None
  return None if found.empty else found


def check(config, rows: int = 0, tokens: int = 0, quantized: bool = False):
  """Refuses a model or a batch that the mesh in force cannot split into equal pieces.

  Args:
    config: a `ModelConfig`.
    rows: of one microbatch; 0 is any.
    tokens: of a row; 0 is any.
    quantized: whether weights are in 4 bits, which are cut between groups of 128.
  Raises:
    InputError: names the axis, the dimension, and the sizes that divide it.
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
  """The number of pieces into which the mesh in force splits these logical axes."""
  return math.prod(_size(axis) for name in logical for axis in TABLE[name])


def constrain(x, *logical: str | None):
  """x with its axes split as their logical names say; None leaves an axis whole."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  axes = [
    # With less than one row or token per piece, the axis stays whole.
    _mesh_axes(name) if name and n >= cut(name) else None
    for name, n in zip(logical, x.shape, strict=True)
  ]
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def stored(tree):
  """Inside jit: a tree with weights, split as `specs` says."""
  return _constrain_tree(tree, specs)


def gathered(tree):
  """Inside jit: weights gathered over `fsdp`; 4-bit weights are gathered as 4 bits."""
  if _size("fsdp") == 1:
    return tree
  return _constrain_tree(tree, functools.partial(specs, without=("fsdp",)))


def replicated(tree):
  """Inside jit: a tree, whole on every device."""
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
  """A tree with weights, put on the mesh in force; unchanged if there is none."""
  on = current()
  if on is None:
    return tree
  return jax.tree.map(_put, tree, shardings(tree, on))


def place_batch(batch: dict[str, np.ndarray]) -> dict:
  """Microbatches [n, B, ...] with rows split; each process moves only its own rows."""
  on = current()
  if on is None:
    return batch
  sharding = NamedSharding(on, PartitionSpec(None, _mesh_axes("batch")))
  make = jax.make_array_from_callback  # half the time of device_put, at every step
  return {key: make(x.shape, sharding, x.__getitem__) for key, x in batch.items()}


def to_host(x) -> np.ndarray:
  """The whole array on the host; if there are several processes, all must call this."""
  on = current()
  if on is not None and isinstance(x, jax.Array) and not x.is_fully_addressable:
    x = jax.device_put(x, NamedSharding(on, PartitionSpec()))
  return np.asarray(x)


def _put(x, sharding):
  if isinstance(x, jax.Array) and not x.is_fully_addressable:
    # One after the other: processes must run collectives in the same order.
    return jax.block_until_ready(jax.device_put(x, sharding))
  if jax.process_count() == 1:
    return jax.device_put(x, sharding)
  host = np.asarray(x)
  return jax.make_array_from_callback(x.shape, sharding, lambda index: host[index])


def specs(tree, without: tuple[str, ...] = ()):
  """`PartitionSpec`s of a tree with weights, adapters, or an optimizer's state.

  The axes of a leaf follow from the weight in whose place it stands (`WEIGHTS`),
  through the letters i and o in the `dims` of the nodes around it. A larger leaf that
  is not split over `fsdp` this way is split along its longest other axis, if that
  divides.

  Args:
    tree: nested dicts of arrays and weight nodes, also of a single layer.
    without: axes of the mesh that must not split anything.
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
  """The axis letters of a leaf in its innermost node; None for a plain array."""
  if not path:
    return None
  letters, dims, outer = "", dict[str, str](), dict[str, str]()
  for key in path:
    if hasattr(node, "dims"):
      # A node in place of another node's leaf has that leaf's axes as i and o.
      dims, outer = node.dims, dict(zip("io", letters, strict=False))
    is_field = hasattr(key, "name")
    letters = dims.get(key.name if is_field else key.key, "")
    letters = "".join(outer.get(letter, letter) for letter in letters)
    node = getattr(node, key.name) if is_field else node[key.key]
  return letters


def _spec(leaf, letters, axes, without) -> PartitionSpec:
  """The spec of one leaf; see `specs`."""
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
  cuts = [
    c if n % math.prod(map(_size, c)) == 0 else ()
    for c, n in zip(cuts, shape, strict=True)
  ]
  free = "fsdp" not in [axis for c in cuts for axis in c] and _size("fsdp") > 1
  if free and math.prod(shape) >= _SMALL:
    order = sorted(range(len(shape)), key=lambda i: -shape[i])
    for i in order:
      if shape[i] % (math.prod(map(_size, cuts[i])) * _size("fsdp")) == 0:
        cuts[i] = (*cuts[i], "fsdp")
        break
  cuts = [tuple(axis for axis in c if axis not in without) or None for c in cuts]
  while cuts and cuts[-1] is None:
    cuts.pop()  # as compiled programs name their results; otherwise steps recompile
  return PartitionSpec(*[None] * lead, *cuts) if cuts else PartitionSpec()


def _mesh_axes(logical: str) -> tuple[str, ...]:
  return tuple(axis for axis in TABLE[logical] if _size(axis) > 1)


def _size(axis: str) -> int:
  return jax.sharding.get_abstract_mesh().shape.get(axis, 1)
