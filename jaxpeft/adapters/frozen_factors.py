"""Frozen singular vectors U and Vt, as arrays or in 4 bits.

In 4 bits each is about 9 % away in norm, and U S Vt no longer W. So W stays beside
them, and what 4 bits round touches the update only, which is zero at the start and is
trained through the factors as they are: benchmarks/nf4_factors.py measures it.
Axes: i in, o out, k factors.
"""

import jax.numpy as jnp
import numpy as np

from jaxpeft.errors import InputError, unknown
from jaxpeft.quantization import nf4


def check_options(name: str, quantize: str, keep_base: bool | None = True) -> None:
  """Refuses what `quantize` cannot be, and a method's `keep_base` that it rules out."""
  if quantize not in ("", "nf4"):
    raise unknown(f"{name} quantize", quantize, ("", "nf4"))
  if quantize and keep_base is False:
    raise InputError(
      f"{name} quantize={quantize!r} rounds the factors, and without the base beside "
      "them W, too; leave keep_base out, or set quantize=''"
    )


def check(quantize: str, path: str, shape: tuple[int, ...], rank: int) -> None:
  """Refuses 4 bits where U [in, k] and Vt [k, out] do not divide into blocks."""
  if quantize and (shape[0] % nf4.BLOCK or rank % nf4.BLOCK):
    raise InputError(
      f"the {rank} factors of {path} {list(shape)} cannot be held in 4 bits: their "
      "number (`rank`, or all) and the weight's inputs must be multiples of "
      f"{nf4.BLOCK}; set quantize='' of the adapter that matches it"
    )


def freeze(u, vt, dtype, quantize: str) -> dict:
  """The frozen leaves of factors u [in, k] and vt [k, out], given in float32.

  In 4 bits they come with a mark [2, k], sums of each singular vector's entries with
  random signs: the codes of two machines may differ here and there where their SVDs
  differ by rounding, and an adapter's base is told by the mark instead.
  """
  if not quantize:
    return dict(u=u.astype(dtype), vt=vt.astype(dtype))
  rng = np.random.default_rng(0)
  signs = [2 * rng.integers(0, 2, n) - 1.0 for n in (u.shape[0], vt.shape[1])]
  mark = jnp.stack([signs[0] @ u, vt @ signs[1]]).astype(jnp.float32)
  return dict(u=nf4.quantize(u, dtype), vt=nf4.quantize(vt, dtype), mark=mark)


def is_marked(path: str) -> bool:
  """Whether the leaf at this path is of factors in 4 bits, which have a mark."""
  return any(f"/frozen/{name}/" in path for name in ("u", "vt"))
