"""LoftQ: LoRA that starts as what 4 bits leave of W [Li et al. 2023, arXiv:2310.08659].

Q = nf4(W - c A B) and c A B = the r leading triplets of W - Q, in turn; Q stays frozen.
The paper's setting (LLaMA2-7B, all projections): rank 64, alpha 64 (c = 1), 5 rounds.
Axes: i in, o out, r rank.
"""

import dataclasses

import jax.numpy as jnp

from jaxpeft.adapters import svd
from jaxpeft.adapters.base import float32
from jaxpeft.adapters.residual import Residual
from jaxpeft.errors import InputError
from jaxpeft.quantization import nf4

_ITERATIONS, _OVERSAMPLE = 8, 8  # of the randomized SVD


@dataclasses.dataclass(frozen=True)
class LoftQ(Residual):
  """LoRA over a 4-bit weight; it starts as what the rounding lost."""

  quantize: str = "nf4"

  def __post_init__(self):
    super().__post_init__()
    if not self.quantize:
      raise InputError("LoftQ is of 4 bits: quantize must be 'nf4'")

  def init(self, key, w):
    """frozen q = nf4(w - c a b) of the round before; theta a, b."""
    self.check_base(w)
    whole, change = float32(w), 0.0
    for _ in range(self.rounds):
      q = nf4.quantize((whole - change).astype(w.dtype))
      left = whole - float32(q)
      u, s, vt = svd.randomized(key, left, self.rank, _ITERATIONS, _OVERSAMPLE)
      root = jnp.sqrt(s / self.scale)
      a, b = u * root, root[:, None] * vt
      change = self.scale * (a @ b)
    return dict(w=q), dict(a=a, b=b)
