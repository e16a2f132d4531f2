"""NF4 weights: 4 bits per number, with the same values as in bitsandbytes.

A weight W [in, out] is stored as its transpose [out, in], in blocks of 64 along the
inputs. Each number is one of 16 quantiles of a normal distribution, multiplied by its
block's scale, which is the largest magnitude in the block. The scales themselves are
stored as 8-bit codes in blocks of 256, after their mean has been subtracted (double
quantization). In total, this takes 4 + 8/64 + 32/(64 256) = 4.127 bits per number.
Source: Dettmers et al. 2023, arXiv:2305.14314. Codes, scales and values equal those of
the paper's code, bitsandbytes; only the order of the codes within a group of 128 inputs
differs (`pack`), which lets kernels read whole blocks.
"""

import dataclasses
import functools
import re
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpeft import tree
from jaxpeft.errors import InputError
from jaxpeft.linear import is_node
from jaxpeft.quantization import nf4_matmul
from jaxpeft.quantization.dynamic_code import DYNAMIC_MAP
from jaxpeft.quantization.nf4_matmul import BLOCK, CODE

NESTED = 256  # number of scales that share a scale of their own
_MIDDLES = (CODE[:-1] + CODE[1:]) / np.float32(2)
_MAP_MIDDLES = (DYNAMIC_MAP[:-1] + DYNAMIC_MAP[1:]) / np.float32(2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NF4:
  """A weight node (see `linear`) for a frozen 4-bit weight [in, out], or a stack.

  An adapter can use it like the dense array: it has that array's shape and dtype, and
  `astype` dequantizes it.
  """

  codes: jax.Array  # uint8[..., out, in / 2], two codes per byte, see `pack`
  absmax: jax.Array  # uint8[..., out, in / 64], 8-bit codes of (scales - offset)
  nested: jax.Array  # float32[..., ceil(out in / 64 / 256)], the scales of absmax
  offset: jax.Array  # float32[...], the mean of the scales
  dtype: jnp.dtype = dataclasses.field(metadata=dict(static=True))
  dims: ClassVar = dict(codes="oi", absmax="oi")  # {leaf: axes}, see `adapters.base`

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of the dense weight, (..., in, out)."""
    *stack, rows, half = self.codes.shape
    return (*stack, 2 * half, rows)

  @property
  def ndim(self) -> int:
    """The number of axes of the dense weight."""
    return self.codes.ndim

  @property
  def size(self) -> int:
    """The number of entries of the dense weight."""
    return 2 * self.codes.size

  @property
  def nbytes(self) -> int:
    """The size of all leaves together, in bytes."""
    return sum(x.nbytes for x in jax.tree.leaves(self))

  def __getitem__(self, i: int) -> "NF4":
    """Layer i of a stack, as a node of its own."""
    return jax.tree.map(lambda x: x[i], self)

  def __iter__(self):
    """An iterator over the layers of a stack, each a node of its own."""
    return (self[i] for i in range(self.shape[0]))

  def matmul(self, x):
    """The product of x [..., in] with the weight, [..., out], in x's dtype."""
    return _matmul(x, self)

  def dense(self):
    """The dense weight [..., in, out], in its own dtype."""
    return self.astype(self.dtype)

  def astype(self, dtype):
    """The dense weight [..., in, out], rounded to its own dtype, then to `dtype`."""
    values = functools.partial(_dequantize, dtype=self.dtype)
    for _ in range(self.ndim - 2):
      values = jax.vmap(values)
    return values(self).swapaxes(-1, -2).astype(dtype)


def check(path: str, shape: tuple[int, ...]) -> None:
  """Checks that a weight divides into blocks.

  Args:
    path: the weight's path, for the error message.
    shape: the weight's shape, without the axis of layers.
  Raises:
    InputError: the weight is not a matrix, or its inputs are not a multiple of 64.
  """
  if len(shape) != 2 or shape[0] % BLOCK:
    raise InputError(
      f"{path} {list(shape)} cannot be quantized: it must be a matrix [in, out] whose "
      f"inputs must be a multiple of {BLOCK}; load it with quantize=None "
      "(model.quantize='')"
    )


def takes(path: str) -> bool:
  """True if the leaf at `path` may be stored in 4 bits, i.e. is a projection."""
  return bool(re.fullmatch(r"layers_\d+/(attn|mlp|experts)/\w+", path))


def quantize_tree(params):
  """`params` with every projection in NF4.

  Args:
    params: a parameter tree. Weights that are already nodes do not change.
  Raises:
    InputError: a projection does not divide into blocks.
  """

  def one(path, leaf):
    path = tree.path_name(path)
    if is_node(leaf) or not takes(path):
      return leaf
    check(path, leaf.shape[1:])
    return jax.vmap(quantize)(leaf)

  return jax.tree_util.tree_map_with_path(one, params, is_leaf=is_node)


@functools.partial(jax.jit, static_argnames="dtype")
def quantize(w, dtype=None) -> NF4:
  """The weight [in, out] in NF4. For a stack of weights, use `jax.vmap`.

  Args:
    w: float[in, out], where in is a multiple of 64.
    dtype: the dtype to which the result dequantizes; None means w's dtype.
  """
  rows = w.T.astype(jnp.float32)
  blocks = rows.reshape(rows.shape[0], -1, BLOCK)
  absmax = jnp.abs(blocks).max(-1)
  # Multiply by the reciprocal, as bitsandbytes does; division would round differently.
  scaled = blocks * _reciprocal(absmax)[..., None]
  codes = (scaled[..., None] > _MIDDLES).sum(-1, dtype=jnp.uint8)
  offset = absmax.mean()
  flat = (absmax - offset).reshape(-1)
  padded = jnp.pad(flat, (0, -flat.size % NESTED)).reshape(-1, NESTED)
  nested = jnp.abs(padded).max(-1)
  scaled = padded * _reciprocal(nested)[:, None]
  levels = jnp.searchsorted(_MAP_MIDDLES, scaled).astype(jnp.uint8)
  levels = levels.reshape(-1)[: flat.size].reshape(absmax.shape)
  packed = pack(codes.reshape(rows.shape))
  return NF4(packed, levels, nested, offset, jnp.dtype(dtype or w.dtype))


def _reciprocal(x):
  """1 / x, but 0 where x is 0, so that a block of zeros stays zero."""
  return jnp.where(x > 0, 1 / jnp.where(x > 0, x, 1), 0)


def scales(node: NF4):
  """The scales of one layer's blocks, float32[out, in / 64]."""
  flat = jnp.asarray(DYNAMIC_MAP)[node.absmax].reshape(-1)
  nested = jnp.repeat(node.nested, NESTED)[: flat.size]
  return (flat * nested + node.offset).reshape(node.absmax.shape)


def _dequantize(node: NF4, dtype):
  """The transpose [out, in] of one layer's dense weight, in `dtype`."""
  return nf4_matmul.values(node.codes, scales(node), dtype)


def pack(codes):
  """Codes with two per byte, uint8[out, in / 2].

  A group of 128 inputs is packed into 64 bytes: the first 64 inputs are the low nibbles
  of the bytes, and the other 64 are the high nibbles. If the number of inputs is not
  divisible by 128, a group has 64 inputs instead.

  Args:
    codes: uint8[out, in], each from 0 to 15.
  """
  pairs = codes.reshape(codes.shape[0], -1, 2, nf4_matmul.half(codes.shape[1]))
  return (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(codes.shape[0], -1)


def unpack(packed):
  """The inverse of `pack`: uint8[out, in / 2] -> uint8[out, in]."""
  pairs = packed.reshape(len(packed), -1, 1, nf4_matmul.half(2 * packed.shape[1]))
  return ((pairs >> np.array([[0], [4]], np.uint8)) & 15).reshape(len(packed), -1)


@jax.custom_vjp
def _matmul(x, node: NF4):
  # This barrier and the one in the backward pass prevent XLA from dequantizing all
  # weights early and keeping them, which would lose the memory that 4 bits save:
  # without barriers, a step with 8 weights of 1024 x 1024 has 18.6 MB of temporaries
  # instead of 7.2 MB (docs/quantization.md).
  x, node = lax.optimization_barrier((x, node))
  return nf4_matmul.forward(x, node.codes, scales(node), node.dtype)


def _matmul_fwd(x, node):
  return _matmul(x, node), node


def _matmul_bwd(node, g):
  g, node = lax.optimization_barrier((g, node))
  return nf4_matmul.backward(g, node.codes, scales(node), node.dtype), None


_matmul.defvjp(_matmul_fwd, _matmul_bwd)
