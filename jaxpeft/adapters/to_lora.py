"""Converts any adapter to a low-rank update: exactly, or to the nearest of some rank.

Axes: in and out of the weight, q rank of the update.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpeft.adapters import svd
from jaxpeft.adapters.base import Adapted, float32
from jaxpeft.errors import InputError

_ITERATIONS, _OVERSAMPLE = 12, 16  # of the randomized SVD of W' - W


class LowRank(NamedTuple):
  """A low-rank update a b, such that W' is approximately W + a b."""

  a: jax.Array  # float32[in, q]
  b: jax.Array  # float32[q, out]
  error: float  # ||W' - W - a b|| / ||W' - W||, in Frobenius norms


def low_rank(path: str, node: Adapted, base=None, rank: int | None = None) -> LowRank:
  """The adapter of one weight (not of a stack) as a low-rank update of its base.

  Methods such as LoRA, LoRA-XS and VeRA provide a and b themselves. For all others,
  W' - W is computed and decomposed. That is exact for PiSSA, MiLoRA and OLoRA, whose
  W' - W has at most twice their rank. For the remaining methods, or if `rank` is too
  low, the result is the nearest update of rank q.

  Args:
    path: the weight's path, for error messages.
    node: the adapted weight.
    base: the base's weight [in, out]; required if the method does not keep it.
    rank: q; None chooses the rank at which the update is exact.
  Raises:
    InputError: `base` or `rank` is required but was not given.
  """
  adapter, own = node.adapter, node.adapter.change_rank
  name = type(adapter).__name__
  pair = adapter.lora(node.frozen, node.theta)
  if pair is not None and (rank is None or rank >= own):
    a, b = pair
    return LowRank(a, b, 0.0)
  if rank is None and own is None:
    raise InputError(
      f"{name} on {path} changes the weight by more than a low-rank update; give a "
      "rank to get the nearest LoRA, or export merged weights with --format=hf"
    )
  if base is None:
    base = node.frozen.get("w") if adapter.keeps_base else None
    if base is None:
      raise InputError(f"{name} on {path} does not keep the base's weight; pass `base`")
  change = node.dense() - float32(base)
  q = min(rank or own, *change.shape)
  u, s, vt = svd.randomized(jax.random.key(0), change, q, _ITERATIONS, _OVERSAMPLE)
  root = jnp.sqrt(s)
  a, b = u * root, root[:, None] * vt
  norm = jnp.linalg.norm(change)
  left = jnp.linalg.norm(change - a @ b) / jnp.where(norm > 0, norm, 1.0)
  return LowRank(a, b, float(left))
