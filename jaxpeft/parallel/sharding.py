"""Meshes of devices, and arrays that are split over them.

A mesh has three axes:
  data: each of its groups of devices has a copy of the weights, and its own rows of a
    batch.
  fsdp: splits the rows of a batch further, and every large weight. A layer's weights
    are gathered just before the layer runs.
  tensor: splits heads, feed-forward width and vocabulary. With sequence parallelism it
    is named `sequence`, and also splits the tokens of the activations between layers.

The current mesh is the one that `jax.set_mesh` has set. Without a mesh, these functions
return their input unchanged. The tables in `rules` say what is split over which axis.
No function here calls a collective for the model: XLA's partitioner (GSPMD) inserts
them, so one program serves every mesh.
Source: GSPMD, Xu et al. 2021, arXiv:2105.04663; Korthikanti et al. 2022 (sequence).
"""

import functools
import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxpeft.errors import InputError
from jaxpeft.parallel import rules


def mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, sequence: bool = False):
  """A mesh over the first devices of all processes; None for a single device.

  Args:
    data: number of copies of the weights; rows are split into data * fsdp pieces.
    fsdp: number of pieces of every weight.
    tensor: number of pieces of the heads, feed-forward width and vocabulary.
    sequence: whether `tensor` also splits the tokens between layers.
    One size may be -1: as many as there are devices left.
  Raises:
    InputError: the sizes do not fit the devices.
  """
  sizes = fill(dict(data=data, fsdp=fsdp, tensor=tensor), jax.device_count())
  count = math.prod(sizes.values())
  if jax.process_count() > 1 and count < jax.device_count():
    raise InputError(
      f"a mesh of {count} devices leaves some of {jax.process_count()} processes' "
      f"{jax.device_count()} devices out, and it must use all; set mesh.fsdp=-1"
    )
  if count == 1:
    return None
  return named(sizes, sequence, jax.devices()[:count])


def named(sizes: dict[str, int], sequence: bool, devices) -> Mesh:
  """A mesh of given sizes, in the order data, fsdp, tensor (or sequence)."""
  names = ("data", "fsdp", "sequence" if sequence else "tensor")
  return jax.make_mesh(
    tuple(sizes.values()), names, axis_types=(AxisType.Auto,) * 3, devices=devices
  )


def fill(sizes: dict[str, int], devices: int) -> dict[str, int]:
  """The sizes, with -1 replaced so that the mesh uses all devices.

  Raises:
    InputError: a size is invalid, or the mesh needs more devices than there are.
  """
  rest = [name for name, size in sizes.items() if size == -1]
  shown = ", ".join(f"{name}={size}" for name, size in sizes.items())
  if len(rest) > 1 or any(n < 1 and n != -1 for n in sizes.values()):
    raise InputError(
      f"mesh {shown}: sizes must be at least 1; one may be -1, to use all devices"
    )
  known = math.prod(n for n in sizes.values() if n != -1)
  if known > devices or (rest and devices % known):
    raise InputError(
      f"mesh {shown}: {known} does not fit into {devices} devices; choose divisors of "
      f"{devices} whose product is at most {devices}"
    )
  return {name: devices // known if n == -1 else n for name, n in sizes.items()}


def current() -> Mesh | None:
  """The current mesh, with its devices; None without a mesh, and always inside jit."""
  try:
    found = jax.sharding.get_mesh()
  except ValueError:  # inside jit
    return None
  return None if found.empty else found


def check(config, rows: int = 0, tokens: int = 0, quantized: bool = False):
  """Checks that the current mesh splits a model and a batch into equal pieces.

  Args:
    config: a `ModelConfig`.
    rows: rows of one microbatch; 0 skips this check.
    tokens: tokens of a row; 0 skips this check.
    quantized: whether weights are NF4, which can only be cut between groups of 128.
  Raises:
    InputError: some size is not divisible. The message names the mesh axis and the
      size, and lists the numbers of pieces that are possible.
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
    if ways > 1 and size % (unit * ways):
      axes = " * ".join(f"mesh.{a}" for a in rules.TABLE[logical] if rules.size(a) > 1)
      axes = axes.replace("sequence", "tensor")  # the key of the config
      units = f" (in groups of {unit})" if unit > 1 else ""
      fit = [n for n in range(1, 257) if size % (unit * n) == 0]
      raise InputError(
        f"{axes} = {ways} does not divide {what}, {size}{units}; "
        f"sizes that do: {', '.join(map(str, fit))}"
      )


def cut(*logical: str) -> int:
  """Number of pieces into which the current mesh splits these logical axes."""
  return math.prod(rules.size(axis) for name in logical for axis in rules.TABLE[name])


def constrain(x, *logical: str | None):
  """Constrains an activation's sharding, by a logical name for each of its axes.

  None leaves an axis whole, on every device.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return x
  axes = [
    # An axis with fewer rows or tokens than pieces stays whole.
    rules.mesh_axes(name) if name and n >= cut(name) else None
    for name, n in zip(logical, x.shape, strict=True)
  ]
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def stored(tree):
  """Inside jit: constrains a tree with weights to the sharding of `rules.specs`."""
  return _constrain_tree(tree, rules.specs)


def gathered(tree):
  """Inside jit: gathers weights over `fsdp`; NF4 weights travel as 4-bit codes."""
  if rules.size("fsdp") == 1:
    return tree
  return _constrain_tree(tree, functools.partial(rules.specs, without=("fsdp",)))


def replicated(tree):
  """Inside jit: constrains every leaf of a tree to be whole on every device."""
  return _constrain_tree(tree, lambda t: jax.tree.map(lambda _: PartitionSpec(), t))


def _constrain_tree(tree, of):
  if jax.sharding.get_abstract_mesh().empty:
    return tree
  return jax.tree.map(jax.lax.with_sharding_constraint, tree, of(tree))


def shardings(tree, on: Mesh):
  """`rules.specs` of a tree with weights, as `NamedSharding`s on a mesh."""
  with jax.sharding.use_abstract_mesh(on.abstract_mesh):
    return jax.tree.map(lambda spec: NamedSharding(on, spec), rules.specs(tree))


def place(tree):
  """Moves a tree with weights to the current mesh, sharded by `rules.specs`."""
  on = current()
  if on is None:
    return tree
  return jax.tree.map(_put, tree, shardings(tree, on))


def place_batch(batch: dict[str, np.ndarray]) -> dict:
  """Microbatches [n, B, ...], sharded by rows; each process moves only its own."""
  on = current()
  if on is None:
    return batch
  sharding = NamedSharding(on, PartitionSpec(None, rules.mesh_axes("batch")))
  make = jax.make_array_from_callback  # takes half of device_put's time
  return {key: make(x.shape, sharding, x.__getitem__) for key, x in batch.items()}


def to_host(x) -> np.ndarray:
  """The whole array, on every host; every process must call this."""
  on = current()
  if on is not None and isinstance(x, jax.Array) and not x.is_fully_addressable:
    x = jax.device_put(x, NamedSharding(on, PartitionSpec()))
  return np.asarray(x)


def _put(x, sharding):
  if isinstance(x, jax.Array) and not x.is_fully_addressable:
    # Waits, since all processes must run their collectives in the same order.
    return jax.block_until_ready(jax.device_put(x, sharding))
  if jax.process_count() == 1:
    return jax.device_put(x, sharding)
  host = np.asarray(x)
  return jax.make_array_from_callback(x.shape, sharding, lambda index: host[index])
