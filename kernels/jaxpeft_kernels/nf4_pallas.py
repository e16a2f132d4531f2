"""4-bit weights on TPUs, in Pallas; the layout and the names are those of `nf4`.

A gather along the lanes of a register that holds the table gives the values of 128
codes in one operation, and a gather along a row of scales gives their scales. The low
and the high nibbles of 128 bytes are decoded together, so the inputs must be a multiple
of 256. If they are not, or if a tile does not fit a core's memory, plain JAX computes
the same.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxpeft_kernels import bridge
from jaxpeft_kernels.nf4 import dequantize_ref

_LANES = 128
_DTYPES = (jnp.bfloat16, jnp.float32)  # dtypes that a core can multiply
_TILES = (
  256,
  128,
  64,
  32,
)  # rows of the weight per program; `matmul` needs 128 or more
_BYTES = 10 * 2**20  # limit for a program's double-buffered blocks; a core has 16 MiB


def dequantize(codes, scales, table, dtype, interpret: bool = False):
  """The weight [N, K] in a dtype, rounded once from float32 code times scale.

  Args:
    codes: uint8[N, K / 2].
    scales: float32[N, K / 64].
    table: float32[16], the value of each code.
    dtype: dtype of the result.
    interpret: run in Pallas' interpreter, on any device, for tests.
  """
  outputs, half = codes.shape
  low, high = _planes_of(scales)
  row = half + 8 * low.shape[1] + 2 * half * jnp.dtype(dtype).itemsize
  tile = _tile(row)
  if half % _LANES or not tile or dtype not in _DTYPES:
    return dequantize_ref(codes, scales, table, dtype)
  arguments, out = bridge.varying_as(
    [codes, low, high, _row_of(table)], (outputs, 2 * half), dtype
  )
  return pl.pallas_call(
    _dequantize,
    out_shape=out,
    grid=(pl.cdiv(outputs, tile),),
    in_specs=[*_rows(tile, codes, low, high), _whole(arguments[-1])],
    out_specs=pl.BlockSpec((tile, 2 * half), lambda i: (i, 0)),
    interpret=interpret,
  )(*arguments)


def matmul(x, codes, scales, table, interpret: bool = False):
  """x [M, K] -> x @ W.T [M, N], in x's dtype, without a dequantized weight in memory.

  Weights are rounded to x's dtype, and products are summed in float32.

  Args:
    x: bfloat16 or float32 [M, K] with few rows.
    codes: uint8[N, K / 2].
    scales: float32[N, K / 64].
    table: float32[16].
    interpret: run in Pallas' interpreter, on any device, for tests.
  """
  count, (outputs, half) = len(x), codes.shape
  low, high = _planes_of(scales)
  size = x.dtype.itemsize
  padded = -(-count // 16) * 16
  tile = _tile(half + 8 * low.shape[1] + padded * size, 2 * padded * half * size)
  if half % _LANES or tile < _LANES or x.dtype not in _DTYPES:
    w = dequantize(codes, scales, table, x.dtype, interpret)
    y = jnp.einsum("mk,nk->mn", x, w, preferred_element_type=jnp.float32)
    return y.astype(x.dtype)
  # Separate the inputs that belong to low nibbles from those that belong to high ones.
  planes = x.reshape(count, -1, 2, 64).swapaxes(1, 2).reshape(count, 2, half)
  arguments, out = bridge.varying_as(
    [planes[:, 0], planes[:, 1], codes, low, high, _row_of(table)],
    (count, outputs),
    x.dtype,
  )
  x_low, x_high, *weight, table = arguments
  return pl.pallas_call(
    _matmul,
    out_shape=out,
    grid=(pl.cdiv(outputs, tile),),
    in_specs=[_whole(x_low), _whole(x_high), *_rows(tile, *weight), _whole(table)],
    out_specs=pl.BlockSpec((count, tile), lambda i: (0, i)),
    interpret=interpret,
  )(*arguments)


def _dequantize(codes, low, high, table, out):
  """The body of `dequantize`: writes some rows of the weight, [rows, K]."""
  lane = lax.broadcasted_iota(jnp.int32, (len(codes), _LANES), 1)
  swapped = functools.partial(pltpu.roll, shift=64, axis=1)

  def step(j, _):
    first, second = _values(j, codes, low, high, table)
    # b and c are the groups of the first and the last 64 bytes. `first` holds the low
    # nibbles of both, `second` the high ones.
    b = jnp.where(lane < 64, first, swapped(second))
    c = jnp.where(lane < 64, swapped(first), second)
    for i, part in enumerate((b, c)):
      at = pl.multiple_of((2 * j + i) * _LANES, _LANES)
      out[:, pl.ds(at, _LANES)] = part.astype(out.dtype)

  lax.fori_loop(0, codes.shape[1] // _LANES, step, None)


def _matmul(x_low, x_high, codes, low, high, table, out):
  """The body of `matmul`: writes some columns of the product, [M, columns]."""
  exact = lax.Precision.HIGHEST if x_low.dtype == jnp.float32 else None

  def step(j, total):
    at = pl.ds(pl.multiple_of(j * _LANES, _LANES), _LANES)
    planes = _values(j, codes, low, high, table)
    for x, w in zip((x_low, x_high), planes, strict=True):
      total += lax.dot_general(
        x[:, at],
        w.astype(x.dtype),
        (((1,), (1,)), ((), ())),
        precision=exact,
        preferred_element_type=jnp.float32,
      )
    return total

  zeros = jnp.zeros(out.shape, jnp.float32)
  total = lax.fori_loop(0, codes.shape[1] // _LANES, step, zeros)
  out[...] = total.astype(out.dtype)


def _values(j, codes, low, high, table):
  """Weights float32[rows, 128], of low and of high nibbles, of the j-th 128 bytes."""
  bytes_ = codes[:, pl.ds(pl.multiple_of(j * _LANES, _LANES), _LANES)].astype(jnp.int32)
  lane = lax.broadcasted_iota(jnp.int32, bytes_.shape, 1)
  table = jnp.broadcast_to(table[...], bytes_.shape)
  # 64 bytes share a scale, so 128 bytes have two. A row of 128 lanes holds the scales
  # of 64 such steps.
  block = pl.ds(pl.multiple_of((j >> 6) * _LANES, _LANES), _LANES)
  scale = 2 * (j & 63) + (lane >> 6)
  take = functools.partial(jnp.take_along_axis, axis=1, mode="promise_in_bounds")
  return tuple(
    take(table, nibble) * take(scales[:, block], scale)
    for nibble, scales in ((bytes_ & 15, low), (bytes_ >> 4 & 15, high))
  )


def _planes_of(scales):
  """Scales of the low and of the high nibbles, each padded to whole rows of lanes."""
  room = (0, -(scales.shape[1] // 2) % _LANES)
  return tuple(jnp.pad(scales[:, i::2], ((0, 0), room)) for i in range(2))


def _row_of(table):
  """float32[1, 128], the table padded to a row of lanes."""
  return jnp.pad(jnp.asarray(table), (0, _LANES - 16))[None]


def _rows(tile: int, *arrays):
  """A block specification for each array: program i reads its i-th `tile` rows."""
  return [pl.BlockSpec((tile, x.shape[1]), lambda i: (i, 0)) for x in arrays]


def _whole(array):
  """A block specification with which every program reads the whole array."""
  return pl.BlockSpec(array.shape, lambda i: (0, 0))


def _tile(row: int, fixed: int = 0) -> int:
  """The most rows per program whose blocks fit in memory, or 0; arguments in bytes."""
  return next((n for n in _TILES if 2 * (n * row + fixed) <= _BYTES), 0)
