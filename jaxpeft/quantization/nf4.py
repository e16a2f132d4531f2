"""NF4 weights: 4 bits a number, with the bits of bitsandbytes.

A weight W [in, out] is held as its transpose [out, in] in blocks of 64 along the
inputs: each number is the nearest of 16 quantiles of a normal distribution, times the
block's largest magnitude. Those scales are in turn 8-bit codes in blocks of 256, with
their mean taken out: 4 + 8/64 + 32/(64 256) = 4.127 bits in all. Source: Dettmers et
al. 2023, arXiv:2305.14314; codes, scales and values are those of its code. Only the
order of the codes within a group of 128 inputs is another in memory (`pack`), so that
a kernel reads whole blocks.
"""

import dataclasses
import functools
import re
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpeft.errors import InputError
from jaxpeft.linear import is_node
from jaxpeft.quantization import nf4_matmul
from jaxpeft.quantization.dynamic_code import DYNAMIC_MAP
from jaxpeft.quantization.nf4_matmul import BLOCK, CODE

NESTED = 256  # scales per scale of scales
_MIDDLES = (CODE[:-1] + CODE[1:]) / np.float32(2)
_MAP_MIDDLES = (DYNAMIC_MAP[:-1] + DYNAMIC_MAP[1:]) / np.float32(2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NF4:
  """A frozen 4-bit weight [in, out], or a stack of them; a node as in `linear`.

  Where an adapter wants the numbers themselves, it stands for the dense array: it has
  its shape and dtype, and `astype` gives it.
  """

  codes: jax.Array  # uint8[..., out, in / 2], two each, see `pack`
  absmax: jax.Array  # uint8[..., out, in / 64], codes of the scales less `offset`
  nested: jax.Array  # float32[..., ceil(out in / 64 / 256)], scales of those
  offset: jax.Array  # float32[...], mean of the scales
  dtype: jnp.dtype = dataclasses.field(metadata=dict(static=True))
  dims: ClassVar = dict(codes="oi", absmax="oi")  # as adapters have them

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the dense weight, [..., in, out]."""
    *stack, rows, half = self.codes.shape
    return (*stack, 2 * half, rows)

  @property
  def ndim(self) -> int:
    """Axes of the dense weight."""
    return self.codes.ndim

  @property
  def size(self) -> int:
    """Numbers in it."""
    return 2 * self.codes.size

  @property
  def nbytes(self) -> int:
    """That it takes."""
    return sum(x.nbytes for x in jax.tree.leaves(self))

  def __getitem__(self, i: int) -> "NF4":
    """Layer i of a stack."""
    return jax.tree.map(lambda x: x[i], self)

  def __iter__(self):
    """The layers of a stack."""
    return (self[i] for i in range(self.shape[0]))

  def matmul(self, x):
    """x [..., in] -> [..., out], in x's dtype."""
    return _matmul(x, self)

  def dense(self):
    """The weight [..., in, out], in its dtype."""
    return self.astype(self.dtype)

  def astype(self, dtype):
    """The weight [..., in, out], dequantized in float32 and rounded to a dtype."""
    values = functools.partial(_dequantize, dtype=self.dtype)
    for _ in range(self.ndim - 2):
      values = jax.vmap(values)
    return values(self).swapaxes(-1, -2).astype(dtype)


def check(path: str, shape: tuple[int, ...]) -> None:
  """Raises InputError for a weight [in, out] that does not divide into blocks."""
  if len(shape) != 2 or shape[0] % BLOCK:
    raise InputError(
      f"{path} {list(shape)} cannot be quantized: its inputs must be a multiple of "
      f"{BLOCK}; load it with quantize=None"
    )


def takes(path: str) -> bool:
  """Whether the leaf at a path is a projection, and so may be held in 4 bits."""
  return bool(re.fullmatch(r"layers_\d+/(attn|mlp)/\w+", path))


def quantize_tree(params):
  """The parameters of a model, with every projection in NF4.

  Raises:
    InputError: see `check`.
  """

  def one(path, leaf):
    path = jax.tree_util.keystr(path, simple=True, separator="/")
    if is_node(leaf) or not takes(path):
      return leaf
    check(path, leaf.shape[1:])
    return jax.vmap(quantize)(leaf)

  return jax.tree_util.tree_map_with_path(one, params, is_leaf=is_node)


@functools.partial(jax.jit, static_argnames="dtype")
def quantize(w, dtype=None) -> NF4:
  """A weight [in, out] in NF4 (one layer; `jax.vmap` for a stack).

  Args:
    w: float[in, out], in a multiple of 64.
    dtype: what `dense` and products give; None is w's.
  """
  rows = w.T.astype(jnp.float32)
  blocks = rows.reshape(rows.shape[0], -1, BLOCK)
  absmax = jnp.abs(blocks).max(-1)
  # Times the reciprocal, as there: a quotient would round otherwise.
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
  """1 / x, and 0 of 0: a block of zeros has codes of zero."""
  return jnp.where(x > 0, 1 / jnp.where(x > 0, x, 1), 0)


def scales(node: NF4):
  """float32[out, in / 64] of one layer."""
  flat = jnp.asarray(DYNAMIC_MAP)[node.absmax].reshape(-1)
  nested = jnp.repeat(node.nested, NESTED)[: flat.size]
  return (flat * nested + node.offset).reshape(node.absmax.shape)


def _dequantize(node: NF4, dtype):
  """The transpose [out, in] of one layer."""
  return nf4_matmul.values(node.codes, scales(node), dtype)


def pack(codes):
  """uint8[out, in] of 0..15 -> uint8[out, in / 2].

  Of each group of 128 inputs the first 64 are the low nibbles, and the others the high
  ones (of 64, where 128 does not divide the inputs).
  """
  pairs = codes.reshape(codes.shape[0], -1, 2, nf4_matmul.half(codes.shape[1]))
  return (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(codes.shape[0], -1)


def unpack(packed):
  """Inverse of `pack`."""
  pairs = packed.reshape(len(packed), -1, 1, nf4_matmul.half(2 * packed.shape[1]))
  return ((pairs >> np.array([[0], [4]], np.uint8)) & 15).reshape(len(packed), -1)


@jax.custom_vjp
def _matmul(x, node: NF4):
  # Without these barriers XLA dequantizes every weight early and keeps them all, and
  # the memory that 4 bits save would be lost.
  x, node = lax.optimization_barrier((x, node))
  return nf4_matmul.forward(x, node.codes, scales(node), node.dtype)


def _matmul_fwd(x, node):
  return _matmul(x, node), node


def _matmul_bwd(node, g):
  g, node = lax.optimization_barrier((g, node))
  return nf4_matmul.backward(g, node.codes, scales(node), node.dtype), None


_matmul.defvjp(_matmul_fwd, _matmul_bwd)
