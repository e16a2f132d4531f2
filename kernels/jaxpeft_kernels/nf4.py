"""4-bit weights on NVIDIA GPUs: dequantized, or multiplied directly from their codes.

A weight [N, K] consists of codes uint8[N, K / 2] and scales float32[N, K / 64]. Of each
group of 128 columns, the first 64 are the low nibbles of 64 bytes and the other 64 are
the high nibbles. The low nibbles of a group are thus consecutive columns with one scale
per row, and so are the high ones. A code is an index into a table float32[16].
Axes: M rows of x, N outputs, K inputs (a multiple of 128).

`matmul` is for few rows, as in decoding, where the time is that of reading the weight.
There is no such kernel for the gradient g @ W. Training has thousands of rows, where
dequantizing first takes a small part of the time (14 of 101 us for 4096 x 4096 and
2,048 rows, computed from an H100's bandwidth and peak) and leaves the product to
cuBLAS. A fused kernel would decode each weight again for every tile of rows, and would
have to reach 86 % of the peak just to break even. bitsandbytes and Unsloth dequantize
first, too.
"""

import importlib
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxpeft_kernels import bridge

GROUP = 128  # columns per 64 bytes of codes
_ROWS = 16  # rows of the weight per program of `dequantize`
_PROGRAMS = 264  # K is not split into more programs: two per multiprocessor of an H100


class Tile(NamedTuple):
  """How a product is divided into programs."""

  rows: int  # rows of x per program
  outputs: int  # outputs per program
  splits: int  # parts of K, each its own program; their results are summed afterwards
  stages: int  # of the load pipeline
  warps: int  # per program


# For 16-bit and for 32-bit x. The first tile with enough rows is used, or the last one.
TILES = (
  (
    Tile(16, 32, 1, 6, 4),
    Tile(32, 64, 1, 3, 4),
    Tile(64, 64, 1, 3, 4),
    Tile(128, 128, 1, 3, 8),
  ),
  (Tile(16, 64, 1, 3, 4), Tile(32, 64, 1, 2, 4), Tile(64, 64, 1, 2, 4)),
)


def dequantize(codes, scales, table, dtype):
  """The weight [N, K] in a dtype, rounded once from float32 code times scale.

  Args:
    codes: uint8[N, K / 2].
    scales: float32[N, K / 64].
    table: float32[16], the value of each code.
    dtype: dtype of the result.
  """
  outputs, half = codes.shape
  kernels = importlib.import_module("jaxpeft_kernels.nf4_triton")
  return bridge.call(
    kernels.dequantize,
    codes,
    scales,
    jnp.asarray(table),
    out=jax.ShapeDtypeStruct((outputs, 2 * half), dtype),
    grid=(math.ceil(outputs / _ROWS), half // 64),
    warps=4,
    stages=1,
    N=outputs,
    K=2 * half,
    ROWS=_ROWS,
  )


def dequantize_ref(codes, scales, table, dtype):
  """`dequantize` in plain JAX."""
  outputs, half = codes.shape
  shift = 4 * lax.broadcasted_iota(jnp.uint8, (2, 1), 0)
  planes = codes.reshape(outputs, -1, 1, 64) >> shift & 15
  values = jnp.asarray(table)[planes] * scales.reshape(outputs, -1, 2, 1)
  return values.astype(dtype).reshape(outputs, 2 * half)


def matmul(x, codes, scales, table, tile: Tile | None = None):
  """x [M, K] -> x @ W.T [M, N], in x's dtype, without a dequantized weight in memory.

  Weights are rounded to x's dtype, and products are summed in float32.

  Args:
    x: bfloat16, float16 or float32 [M, K].
    codes: uint8[N, K / 2].
    scales: float32[N, K / 64].
    table: float32[16].
    tile: None takes that of `tile_for`.
  """
  rows, inputs = x.shape
  outputs = codes.shape[0]
  tile = tile or tile_for(rows, outputs, inputs, x.dtype)
  whole = tile.splits == 1
  kernels = importlib.import_module("jaxpeft_kernels.nf4_triton")
  parts = bridge.call(
    kernels.matmul,
    x,
    codes,
    scales,
    jnp.asarray(table),
    rows,
    out=jax.ShapeDtypeStruct(
      (tile.splits, rows, outputs), x.dtype if whole else jnp.float32
    ),
    grid=(math.ceil(outputs / tile.outputs), math.ceil(rows / tile.rows), tile.splits),
    warps=tile.warps,
    stages=tile.stages,
    N=outputs,
    K=inputs,
    ROWS=tile.rows,
    OUTPUTS=tile.outputs,
    SPLITS=tile.splits,
  )
  # Summed in a fixed order, unlike with atomic additions, so that runs are repeatable.
  return parts[0] if whole else parts.sum(0).astype(x.dtype)


def matmul_ref(x, codes, scales, table):
  """`matmul` in plain JAX."""
  w = dequantize_ref(codes, scales, table, x.dtype)
  return jnp.einsum("mk,nk->mn", x, w, preferred_element_type=jnp.float32).astype(
    x.dtype
  )


def tile_for(rows: int, outputs: int, inputs: int, dtype) -> Tile:
  """The tile for M = rows, N = outputs and K = inputs.

  A weight is decoded once for every tile of rows, so up to 64 rows are one tile. With
  few outputs there are too few programs to keep enough loads in flight, so K is split.
  The choices follow from compiled code and bytes in flight; they are not timed yet.
  """
  wide = jnp.dtype(dtype).itemsize > 2
  tiles = TILES[wide]
  tile = next((t for t in tiles if rows <= t.rows), tiles[-1])
  programs = math.ceil(rows / tile.rows) * math.ceil(outputs / tile.outputs)
  groups = inputs // GROUP
  splits = [s for s in (1, 2, 4, 8) if groups % s == 0 and programs * s <= _PROGRAMS]
  return tile._replace(splits=max(splits, default=1))
