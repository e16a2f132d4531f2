"""The Triton kernels of `nf4`, whose docstring describes the layout. Imports triton.

A flat `tl.gather` looks up each code's value among 16 numbers in shared memory: one
load per weight and no shuffles. A tree of `tl.where` takes 2.6 times the instructions,
and a two-dimensional gather shuffles (counted in code compiled for an H100).
"""

import triton
import triton.language as tl


@triton.jit
def _values(table, codes, A: tl.constexpr, B: tl.constexpr):
  """The values float32[A, B] of codes int32[A, B]."""
  return tl.reshape(tl.gather(table, tl.reshape(codes, (A * B,)), axis=0), (A, B))


@triton.jit
def dequantize(
  codes, scales, table, out, N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr
):
  """Writes ROWS rows of one group of 128 columns. Grid: (ceil(N / ROWS), K / 128)."""
  group = tl.program_id(1)
  # int64: N K may exceed 2^31.
  first = tl.program_id(0).to(tl.int64) * ROWS
  row = tl.arange(0, ROWS)
  column = tl.arange(0, 64)
  inside = first + row < N
  pair = codes + first * (K // 2) + group * 64
  pair = tl.load(
    pair + row[:, None] * (K // 2) + column[None, :], mask=inside[:, None], other=0
  ).to(tl.int32)
  scale = scales + first * (K // 64) + 2 * group + row * (K // 64)
  low = tl.load(scale, mask=inside, other=0.0)
  high = tl.load(scale + 1, mask=inside, other=0.0)
  table = tl.load(table + tl.arange(0, 16))
  out += first * K + group * 128
  at = out + row[:, None] * K + column[None, :]
  dtype = out.dtype.element_ty
  low = _values(table, pair & 15, ROWS, 64) * low[:, None]
  tl.store(at, low.to(dtype), mask=inside[:, None])
  high = _values(table, pair >> 4, ROWS, 64) * high[:, None]
  tl.store(at + 64, high.to(dtype), mask=inside[:, None])


@triton.jit
def matmul(
  x, codes, scales, table, M, out,
  N: tl.constexpr, K: tl.constexpr,
  ROWS: tl.constexpr, OUTPUTS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
  """Writes ROWS x OUTPUTS entries of out [SPLITS, M, N]: sums over K / SPLITS inputs.

  Grid: (ceil(N / OUTPUTS), ceil(M / ROWS), SPLITS); SPLITS divides K / 128.
  """
  split = tl.program_id(2)
  row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
  output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
  k = tl.arange(0, 64)
  in_x = (row < M)[:, None]
  in_w = output < N
  groups: tl.constexpr = K // 128 // SPLITS
  first = split * groups
  # int64: M K and N K may exceed 2^31.
  x += row.to(tl.int64)[:, None] * K + first * 128 + k[None, :]
  codes += output.to(tl.int64)[None, :] * (K // 2) + first * 64 + k[:, None]
  scales += output * (K // 64) + first * 2
  table = tl.load(table + tl.arange(0, 16))
  dtype = x.dtype.element_ty
  total = tl.zeros((ROWS, OUTPUTS), tl.float32)
  for _ in range(groups):
    pair = tl.load(codes, mask=in_w[None, :], other=0).to(tl.int32)
    low = tl.load(scales, mask=in_w, other=0.0)[None, :]
    high = tl.load(scales + 1, mask=in_w, other=0.0)[None, :]
    x_low = tl.load(x, mask=in_x, other=0.0)
    x_high = tl.load(x + 64, mask=in_x, other=0.0)
    w = (_values(table, pair & 15, 64, OUTPUTS) * low).to(dtype)
    # tf32x3 affects only float32 x: plain TF32 would round, IEEE would spill registers.
    total = tl.dot(x_low, w, total, input_precision="tf32x3")
    w = (_values(table, pair >> 4, 64, OUTPUTS) * high).to(dtype)
    total = tl.dot(x_high, w, total, input_precision="tf32x3")
    x += 128
    codes += 64
    scales += 2
  row = row.to(tl.int64) + split * M
  tl.store(
    out + row[:, None] * N + output[None, :],
    total.to(out.dtype.element_ty),
    mask=in_x & in_w[None, :],
  )
