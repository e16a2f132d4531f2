"""LoftQ: LoRA initialized to W's 4-bit error [Li et al. 2023, arXiv:2310.08659].

W' = Q + c A B, where Q is in 4 bits and frozen, and A and B are trained. A B starts at
zero. Each round of the initialization first sets Q to nf4(W - c A B), and then c A B to
the part of W - Q that belongs to its r leading singular triplets. The paper's setting
(LLaMA2-7B, all projections): rank 64, alpha 64 (so c = 1), 5 rounds.
Axes: i in, o out, r rank.
"""

import dataclasses

import jax.numpy as jnp

from jaxpeft.adapters import svd
from jaxpeft.adapters.base import float32
from jaxpeft.adapters.residual import Residual
from jaxpeft.errors import InputError
from jaxpeft.quantization import nf4

_ITERATIONS, _OVERSAMPLE = 8, 8  # arguments of `svd.randomized`


@dataclasses.dataclass(frozen=True)
class LoftQ(Residual):
  """LoRA on a weight rounded to 4 bits, which starts by making up for the rounding.

  Attributes:
    quantize: must be "nf4".
  """

  quantize: str = "nf4"

  def __post_init__(self):
    super().__post_init__()
    if not self.quantize:
      raise InputError(
        f"LoftQ quantize={self.quantize!r} is not possible, because LoftQ makes up for "
        "the error of 4 bits; set quantize='nf4', or omit it"
      )

  def init(self, key, w):
    """Frozen leaf w, which is Q in 4 bits; trained leaves a [in, r] and b [r, out]."""
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
