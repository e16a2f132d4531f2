"""Any adapter as a plain low-rank update, exactly or as near as a rank allows.

Axes: i in, o out, q rank of the update.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpeft.adapters import svd
from jaxpeft.adapters.base import Adapted, float32
from jaxpeft.errors import InputError

_ITERATIONS, _OVERSAMPLE = 12, 16  # of the randomized SVD of W' - W


class LowRank(NamedTuple):
  """W' is about W + a b."""

  a: jax.Array  # float32[in, q]
  b: jax.Array  # float32[q, out]
  error: float  # ||W' - W - a b|| / ||W' - W||, Frobenius


def low_rank(path: str, node: Adapted, base=None, rank: int | None = None) -> LowRank:
  """One weight's adapter (not a stack of them) as a low-rank update of its base.

  LoRA, NoRA, LoRA-XS and VeRA have their factors at hand. PiSSA, MiLoRA and OLoRA
  change W by twice their rank, which the base's weight shows. For the others the best
  rank-q update is computed, and its error is reported.

  Args:
    path: for errors.
    node: the adapted weight.
    base: the base's weight [in, out], for methods that do not keep it.
    rank: q; None where the method's own rank makes the update exact.
  Raises:
    InputError: `base` or `rank` is needed and not given.
  """
  adapter, own = node.adapter, node.adapter.change_rank
  name = type(adapter).__name__
  pair = adapter.lora(node.frozen, node.theta)
  if pair is not None and (rank is None or rank >= own):
    a, b = pair
    return LowRank(a, b, 0.0)
  if rank is None and own is None:
    raise InputError(
      f"{name} on {path} changes the weight by more than a low rank; give a rank for "
      "the nearest LoRA, or export merged weights (format hf)"
    )
  if base is None:
    base = node.frozen.get("w") if adapter.keeps_base else None
    if base is None:
      raise InputError(f"{name} on {path} does not keep the base's weight; give `base`")
  change = node.dense() - float32(base)
  q = min(rank or own, *change.shape)
  u, s, vt = svd.randomized(jax.random.key(0), change, q, _ITERATIONS, _OVERSAMPLE)
  root = jnp.sqrt(s)
  a, b = u * root, root[:, None] * vt
  norm = jnp.linalg.norm(change)
  left = jnp.linalg.norm(change - a @ b) / jnp.where(norm > 0, norm, 1.0)
  return LowRank(a, b, float(left))
