"""The NF4 kernels' numbers, by Triton's interpreter on numpy. Run by test_kernels.

In a process of its own: TRITON_INTERPRET is read where a kernel is defined. In float32,
as the interpreter multiplies the bits of bfloat16, and truncates where it should round.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

import jax
import numpy as np
from jaxpeft_kernels import nf4 as kernels
from jaxpeft_kernels import nf4_triton

from jaxpeft.quantization import nf4, nf4_matmul

_NAMES = {"float32": "fp32", "uint8": "u8", "int32": "i32"}


class Tensor:
  """As much of a torch tensor as the interpreter asks for: memory, and its type."""

  def __init__(self, array):
    self.array = array
    self.dtype = _NAMES[str(array.dtype)]

  def data_ptr(self):
    return self.array.ctypes.data

  def untyped_storage(self):
    return self

  def cpu(self):
    return self

  def copy_(self, other):
    """The interpreter has worked in our memory: nothing to bring back."""

  def storage_offset(self):
    return 0

  def size(self):
    return self.array.shape

  def stride(self):
    return tuple(s // self.array.itemsize for s in self.array.strides)

  def new_empty(self, *_, **__):
    return self

  def set_(self, *_):
    """See copy_."""


def weight(outputs: int, inputs: int):
  """(NF4 node [inputs, outputs], codes, scales) of random numbers, as numpy arrays."""
  w = jax.random.normal(jax.random.key(outputs), (inputs, outputs))
  node = nf4.quantize(w)
  return node, np.array(node.codes), np.array(nf4.scales(node))


def dequantize(outputs: int, inputs: int):
  """Asserts that the kernel's bits are those of jaxpeft.nf4, and of `_ref`."""
  node, codes, scales = weight(outputs, inputs)
  out = np.full((outputs, inputs), np.nan, np.float32)
  grid = (-(-outputs // 16), inputs // 128)
  tensors = [Tensor(x) for x in (codes, scales, nf4.CODE, out)]
  nf4_triton.dequantize[grid](*tensors, outputs, inputs, 16)
  np.testing.assert_array_equal(out, np.asarray(node.dense()).T)
  ref = kernels.dequantize_ref(codes, scales, nf4.CODE, "float32")
  np.testing.assert_array_equal(out, ref)


def matmul(rows: int, outputs: int, inputs: int, tile: kernels.Tile):
  """Asserts the product's error against float64, of the kernel and of `_ref`."""
  node, codes, scales = weight(outputs, inputs)
  x = np.random.default_rng(rows).standard_normal((rows, inputs), np.float32)
  want = x.astype(np.float64) @ np.asarray(node.dense(), np.float64)
  parts = np.full((tile.splits, rows, outputs), np.nan, np.float32)
  grid = (-(-outputs // tile.outputs), -(-rows // tile.rows), tile.splits)
  tensors = [Tensor(a) for a in (x, codes, scales, nf4.CODE)]
  nf4_triton.matmul[grid](
    *tensors, rows, Tensor(parts), outputs, inputs, tile.rows, tile.outputs, tile.splits
  )
  for got in (parts.sum(0), kernels.matmul_ref(x, codes, scales, nf4.CODE)):
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    # Sums of some hundred products, in float32.
    assert error < 1e-6, (rows, outputs, inputs, tile, error)


def main():
  """All of them; what fails raises."""
  # What is interpreted cannot be traced, not even for a platform that is not this one.
  nf4_matmul.kernels_for = lambda *_: {}
  dequantize(64, 256)
  dequantize(37, 384)
  for rows in (1, 5, 16, 40):
    tile = kernels.tile_for(rows, 40, 256, "float32")
    assert tile.splits == 2
    matmul(rows, 40, 256, tile)
  matmul(40, 64, 256, tile._replace(splits=1))
  matmul(150, 72, 256, kernels.TILES[0][-1]._replace(splits=2))
  print("the kernels' numbers are right")


if __name__ == "__main__":
  main()
