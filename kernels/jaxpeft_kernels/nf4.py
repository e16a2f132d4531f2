"""Weights of 4-bit codes: dequantized, and multiplied from their codes.

A weight [N, K] is uint8[N, K / 2] and float32[N, K / 64]: of each group of 128 columns
the first 64 are the low nibbles of 64 bytes, the others the high ones, so that a nibble
plane is a tile of consecutive columns with one scale a row. A code is an index into a
table float32[16]. Axes: M rows of x, N outputs, K inputs (a multiple of 128).

There is no fused product for the gradient g @ W. Training has thousands of rows, where
dequantizing first costs a part (14 of 101 us for 4096 x 4096 and 2,048 rows, from an
H100's bandwidth and peak) and leaves the product to cuBLAS; a fused loop decodes each
weight again for every tile of rows, and would have to reach 86 % of that peak to be
even. bitsandbytes and Unsloth do the same. `matmul` is for few rows, as in decoding,
where time is the weight's bytes.
"""

import importlib
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxpeft_kernels import bridge

GROUP = 128  # columns per 64 bytes of codes
_ROWS = 16  # of a program that dequantizes
_PROGRAMS = 264  # at most, by splitting: two for each multiprocessor of an H100


class Tile(NamedTuple):
  """How a product is cut into programs."""

  rows: int  # of x
  outputs: int
  splits: int  # of K, summed afterwards
  stages: int
  warps: int


# For numbers of 16 bits, and of 32; in order of rows, the last one for all beyond, too.
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
    dtype: of the result.
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
  """x [M, K] -> x @ W.T [M, N], in x's dtype; no dequantized weight in memory.

  Weights are rounded to x's dtype, and products summed in float32.

  Args:
    x: bfloat16, float16 or float32 [M, K].
    codes: uint8[N, K / 2].
    scales: float32[N, K / 64].
    table: float32[16].
    tile: None is `tile_for`'s.
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
  # Summed in a fixed order, unlike atomic additions: runs stay repeatable.
  return parts[0] if whole else parts.sum(0).astype(x.dtype)


def matmul_ref(x, codes, scales, table):
  """`matmul` in plain JAX."""
  w = dequantize_ref(codes, scales, table, x.dtype)
  return jnp.einsum("mk,nk->mn", x, w, preferred_element_type=jnp.float32).astype(
    x.dtype
  )


def tile_for(rows: int, outputs: int, inputs: int, dtype) -> Tile:
  """The tile for M, N, K. Chosen from compiled code and bytes in flight, not timed yet.

  A weight is decoded once for each tile of rows: up to 64 rows are one tile. Few
  outputs are too few programs to keep enough loads under way, so K is split.
  """
  wide = jnp.dtype(dtype).itemsize > 2
  tiles = TILES[wide]
  tile = next((t for t in tiles if rows <= t.rows), tiles[-1])
  programs = math.ceil(rows / tile.rows) * math.ceil(outputs / tile.outputs)
  groups = inputs // GROUP
  splits = [s for s in (1, 2, 4, 8) if groups % s == 0 and programs * s <= _PROGRAMS]
  return tile._replace(splits=max(splits, default=1))
