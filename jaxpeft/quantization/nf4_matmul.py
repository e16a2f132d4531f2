"""Products with 4-bit weights: kernels on NVIDIA GPUs and TPUs, plain JAX elsewhere.

Usually a kernel dequantizes the weight, and XLA computes the product. If x has few
rows, another kernel computes the product directly from the codes. The kernels
(`jaxpeft_kernels`) run on TPUs, and on NVIDIA GPUs if jax-triton is installed, for
weights whose number of inputs is a multiple of 128.

On a mesh of several GPUs, each device's kernel works on that device's part of a weight,
and no weight is gathered, if the mesh divides the outputs and the groups of inputs
evenly. Otherwise, and on a mesh of TPUs, plain JAX is used, except inside a
`jax.shard_map` over all axes. The mesh is recognized from arrays that are placed on it
or from `jax.set_mesh`. `jax.jit(in_shardings=...)` alone does not reveal it here, and
weights would then be gathered.

Axes: in inputs, out outputs. Codes and scales are those of one layer of `nf4.NF4`.
"""

import functools
import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpeft.parallel import sharding

BLOCK = 64  # numbers per scale
CODE = np.array(
  [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
  ],
  np.float32,
)  # fmt: skip
_TILE, _MOST_TILES = 2**24, 8  # numbers dequantized at once, and the most tiles
# The most rows of x for which products are computed directly from the codes. An H100's
# bandwidth and peak suggest 256; that has not been timed yet (kernels/bench/nf4.py), so
# the limit is one tile of rows.
FUSED_ROWS = 64


def values(codes, scale, dtype):
  """The dense transpose [out, in] of a weight, rounded once, to `dtype`.

  Args:
    codes: uint8[out, in / 2].
    scale: float32[out, in / 64].
    dtype: dtype of the result.
  """
  plain = functools.partial(_values, dtype=dtype)
  ways = _ways(codes, scale)
  kernels = _usable(kernels_for(codes), codes, ways)
  if not kernels:
    return plain(codes, scale, CODE)

  @custom_vmap
  def one(codes, scale):
    def each(*args):
      fast = {
        platform: functools.partial(module.dequantize, dtype=dtype)
        for platform, module in kernels.items()
      }
      return lax.platform_dependent(*args, default=plain, **fast)

    local = _by_parts(each, codes) if ways > 1 else each
    return local(codes, scale, CODE)

  @one.def_vmap
  def _(size, batched, *args):
    # A stack of weights is treated as one weight with more outputs.
    args = (_stack(x, size, b) for x, b in zip(args, batched, strict=True))
    flat = one(*(x.reshape(-1, x.shape[-1]) for x in args))
    return flat.reshape(size, -1, flat.shape[-1]), True

  return one(codes, scale)


def forward(x, codes, scale, dtype):
  """x [..., in] -> x @ W [..., out], in x's dtype.

  Args:
    x: float[..., in].
    codes: uint8[out, in / 2].
    scale: float32[out, in / 64].
    dtype: the weight is rounded to this dtype first, and then to x's.
  """
  # The kernel rounds the weight only once, to x's dtype; both ways must agree.
  once = jnp.promote_types(dtype, x.dtype) == dtype and x.dtype.itemsize <= 4
  ways = _ways(codes, x, scale)
  kernels = _usable(kernels_for(codes), codes, ways)
  # On a mesh, flattening many rows as below could reshard x.
  many = ways > 1 and x.size // x.shape[-1] > FUSED_ROWS
  if not (kernels and once) or many:
    return dequantized(x, codes, scale, dtype)

  @custom_vmap
  def product(x, codes, scale):
    if not 0 < len(x) <= FUSED_ROWS:
      return dequantized(x, codes, scale, dtype)

    def plain(x, codes, scale, table):
      return x @ _values(codes, scale, table, dtype).astype(x.dtype).T

    def each(*args):
      fast = {platform: module.matmul for platform, module in kernels.items()}
      return lax.platform_dependent(*args, default=plain, **fast)

    local = _by_parts(each, codes, len(x), ways) if ways > 1 else each
    return local(x, codes, scale, CODE)

  @product.def_vmap
  def _(size, batched, *args):
    if batched[1] or batched[2]:
      args = [_stack(x, size, b) for x, b in zip(args, batched, strict=True)]
      return lax.map(lambda args: product(*args), tuple(args)), True
    # Merge the batch into the rows; `product` checks again whether they are few.
    x, *weight = args
    y = product(x.reshape(-1, x.shape[-1]), *weight)
    return y.reshape(*x.shape[:-1], -1), True

  y = product(x.reshape(-1, x.shape[-1]), codes, scale)
  return y.reshape(*x.shape[:-1], -1)


def dequantized(x, codes, scale, dtype):
  """`forward` by dequantizing the weight first, tile by tile."""

  def product(codes, scale):
    w = values(codes, scale, dtype).astype(x.dtype)
    return jnp.einsum("...i,oi->...o", x, w)

  return _by_tiles(product, codes, scale, axis=0)


def backward(g, codes, scale, dtype):
  """g [..., out] -> g @ W.T [..., in], in g's dtype; arguments as in `forward`."""

  def product(codes, scale):
    return g @ values(codes, scale, dtype).astype(g.dtype)

  return _by_tiles(product, codes, scale, axis=1)


def kernels_for(codes) -> dict:
  """{platform: kernels} that can be used for these codes, see `by_platform`."""
  package = _kernel_package()
  return package.by_platform() if package and codes.shape[1] % 64 == 0 else {}


def half(inputs: int) -> int:
  """Half a group: how many consecutive codes are low, or high, nibbles; see `pack`."""
  return 64 if inputs % 128 == 0 else 32


def _values(codes, scale, table, dtype):
  rows, bytes_ = codes.shape
  # Broadcast shifts instead of a concatenation: XLA:GPU fuses this into one loop.
  pairs = codes.reshape(rows, -1, 1, half(2 * bytes_))
  codes = (pairs >> (4 * lax.broadcasted_iota(jnp.uint8, (2, 1), 0))) & 15
  numbers = jnp.asarray(table)[codes].reshape(rows, -1, BLOCK)
  return (numbers * scale[..., None]).astype(dtype).reshape(rows, 2 * bytes_)


def _usable(kernels: dict, codes, ways: int) -> dict:
  """The kernels that can work on a weight split into up to `ways` parts.

  The TPU compiler cannot split kernels. If `ways` does not divide outputs and groups of
  inputs evenly, XLA might split along a part of a mesh axis, which
  `custom_partitioning` cannot express.
  """
  outputs, half = codes.shape
  even = outputs % ways == half // 64 % ways == 0
  return {p: m for p, m in kernels.items() if ways == 1 or (p == "cuda" and even)}


def _by_parts(f, codes, rows: int = 0, ways: int = 1):
  """`f`, partitioned so that every device applies it to its own part of the codes.

  Args:
    f: if rows is 0, (codes, scale, table) -> [out, in], where each group of 128 inputs
      is independent; otherwise (x [rows, in], codes, scale, table) -> [rows, out],
      which is a sum over the groups.
    codes: uint8[out, in / 2].
    rows: number of rows of x, or 0.
    ways: the most parts into which the mesh can split an axis.
  """

  def partition(mesh, arguments, result):
    places = tuple(x.sharding for x in arguments)
    if not rows:
      return mesh, f, result.sharding, places
    # The weight stays in place; x is resharded to match the weight's groups of inputs.
    (of_x, _), (outputs, groups) = map(_axes, places[:2])
    of_x = tuple(axis for axis in of_x if axis not in outputs + groups)
    x, y = (NamedSharding(mesh, P(of_x, axes)) for axes in (groups, outputs))

    def local(*args):
      return lax.psum(f(*args), groups) if groups else f(*args)

    return mesh, local, y, (x, places[1], places[1], places[3])

  cut = custom_partitioning(f)
  weight, inputs = "o (g b), o (g s), t", "(g n)"
  cut.def_partition(
    partition=partition,
    sharding_rule=f"m {inputs}, {weight} -> m o" if rows else f"{weight} -> o {inputs}",
    need_replication_factors=("m", "t") if rows % ways else ("t",),
    reduction_factors=("g",) if rows else (),
    g=codes.shape[1] // 64,
    n=128,
    b=64,
    s=2,
  )
  return cut


def _axes(place: NamedSharding) -> list[tuple[str, ...]]:
  """The mesh axes that split each of the two axes of a matrix."""
  spec = (*place.spec, None, None)[:2]
  return [x if isinstance(x, tuple) else (x,) if x else () for x in spec]


def _by_tiles(product, codes, scale, axis: int):
  """product(codes, scale), computed in tiles of a large weight.

  Only one tile is dequantized at a time. The result is the same as without tiles.

  Args:
    product: (uint8[out, in / 2], float32[out, in / 64]) -> [..., n], where n is the
      weight's outputs or inputs, see axis.
    codes: uint8[out, in / 2].
    scale: float32[out, in / 64].
    axis: 0 splits the outputs, 1 the inputs, in whole groups of codes.
  """
  size = len(codes) if axis == 0 else 2 * codes.shape[1]
  units = size if axis == 0 else size // (2 * half(size))
  ways = sharding.cut("heads")  # each tile has an equal part of every device's share
  ways = ways if units % ways == 0 else 1
  fits = [n for n in range(1, _MOST_TILES + 1) if units % (n * ways) == 0]
  count = next((n for n in fits if 2 * codes.size / ways / n <= _TILE), fits[-1])
  if count == 1:
    return product(codes, scale)

  def cut(x, i):
    x = x.reshape(*x.shape[:axis], ways, count, -1, *x.shape[axis + 1 :])
    x = lax.dynamic_index_in_dim(x, i, axis + 1, keepdims=False)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

  def write(y, i):
    tile = product(cut(codes, i), cut(scale, i))
    tile = tile.reshape(*tile.shape[:-1], ways, 1, -1)
    return lax.dynamic_update_slice_in_dim(y, tile, i, -2), None

  tile = jax.eval_shape(lambda: product(cut(codes, 0), cut(scale, 0)))
  start = jnp.zeros((*tile.shape[:-1], ways, count, size // ways // count), tile.dtype)
  y = lax.scan(write, start, jnp.arange(count))[0]
  return y.reshape(*y.shape[:-3], size)


@functools.cache
def _kernel_package():
  """The package jaxpeft_kernels, or None if it is not installed."""
  try:
    return importlib.import_module("jaxpeft_kernels")
  except ImportError:
    return None


def _ways(*args) -> int:
  """The largest number of parts into which XLA may split an array on the mesh."""
  meshes = [jax.sharding.get_abstract_mesh()]
  meshes += [getattr(jax.typeof(x).sharding, "mesh", None) for x in args]
  return max(
    math.prod(
      mesh.shape[name]
      for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
      if kind != AxisType.Manual
    )
    for mesh in meshes
    if mesh is not None
  )


def _stack(x, size: int, batched: bool):
  return x if batched else jnp.broadcast_to(x, (size, *x.shape))
