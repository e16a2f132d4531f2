"""Frozen factors U and Vt (singular vectors of a weight), as arrays or in 4 bits (NF4).

Rounding to 4 bits changes each factor by about 9% in norm, so U S Vt is no longer W.
Methods therefore keep W as well, and use the rounded factors only for the update. That
is harmless: the update is zero at the start, and training then takes the rounded
factors into account. benchmarks/nf4_factors.py measures the effect.
Axes: i in, o out, k singular vectors, b the two rows of a mark (see `freeze`).
"""

import jax.numpy as jnp
import numpy as np

from jaxpeft.errors import InputError, unknown
from jaxpeft.quantization import nf4


def check_options(name: str, quantize: str, keep_base: bool | None = True) -> None:
  """Checks a method's options for its factors.

  Args:
    name: the method's name, for the error message.
    quantize: the method's option; "" or "nf4".
    keep_base: the method's option; True if it always keeps W.
  Raises:
    InputError: `quantize` is unknown, or it is "nf4" although W is not kept.
  """
  if quantize not in ("", "nf4"):
    raise unknown(f"{name} quantize", quantize, ("", "nf4"))
  if quantize and keep_base is False:
    raise InputError(
      f"{name} quantize={quantize!r} rounds the factors, which would change W with "
      "keep_base=False; omit keep_base, or set quantize=''"
    )


def check(quantize: str, path: str, shape: tuple[int, ...], rank: int) -> None:
  """Checks that factors to be stored in 4 bits divide into blocks.

  Args:
    quantize: "" or "nf4".
    path: the weight's path, for the error message.
    shape: the weight's shape, [in, out].
    rank: the number of singular vectors, so that U is [in, rank] and Vt [rank, out].
  Raises:
    InputError: with "nf4", in or rank is not a multiple of a block's size.
  """
  if quantize and (shape[0] % nf4.BLOCK or rank % nf4.BLOCK):
    raise InputError(
      f"the {rank} singular vectors of {path} {list(shape)} cannot be stored in 4 "
      "bits: their number (`rank`, or min(in, out)) and the weight's inputs must be "
      f"multiples of {nf4.BLOCK}; set quantize='' of the adapter that matches it"
    )


def freeze(u, vt, dtype, quantize: str) -> dict:
  """{name: leaf} of the frozen leaves that store the factors: "u", "vt", "mark".

  Only factors in 4 bits have a mark [2, k]: for each singular vector in u and in vt,
  the sum of its entries, each with a fixed random sign. When a checkpoint is loaded,
  the mark shows whether the factors are those it was trained with. The 4-bit codes
  cannot serve for this, because the SVDs of two machines differ by rounding, and then
  some of the codes differ by one step.

  Args:
    u: float32[in, k].
    vt: float32[k, out].
    dtype: the dtype of dense factors, or the one to which 4-bit factors dequantize.
    quantize: "" for dense factors, "nf4" for 4 bits.
  """
  if not quantize:
    return dict(u=u.astype(dtype), vt=vt.astype(dtype))
  rng = np.random.default_rng(0)
  signs = [2 * rng.integers(0, 2, n) - 1.0 for n in (u.shape[0], vt.shape[1])]
  mark = jnp.stack([signs[0] @ u, vt @ signs[1]]).astype(jnp.float32)
  return dict(u=nf4.quantize(u, dtype), vt=nf4.quantize(vt, dtype), mark=mark)


def is_marked(path: str) -> bool:
  """True if the leaf at `path` is part of a 4-bit factor, which a mark identifies."""
  return any(f"/frozen/{name}/" in path for name in ("u", "vt"))
