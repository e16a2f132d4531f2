"""PiSSA: train W's leading singular part, freeze the rest [Meng et al. 2024].

arXiv:2404.02948. W = U S Vt; A = U_r sqrt(S_r / c), B = sqrt(S_r / c) Vt_r, and
W - c A B stays frozen. The paper's setting: rank 128, alpha 128, AdamW, lr 2e-5,
cosine, warm-up 0.03, batch 128, one epoch of MetaMathQA's first 100,000; its code has
16 power iterations.
Axes: i in, o out, r rank.
"""

import dataclasses

import jax.numpy as jnp

from jaxpeft.adapters import svd
from jaxpeft.adapters.residual import Residual


@dataclasses.dataclass(frozen=True)
class PiSSA(Residual):
  """LoRA that starts as the leading singular triplets of W; the rest is frozen.

  Attributes:
    iterations: number of iterations of a randomized SVD; None uses the exact one.
  """

  iterations: int | None = None

  def start(self, key, w):
    """(a0 [in, r], b0 [r, out])."""
    u, s, vt = svd.leading(key, w, self.rank, self.iterations)
    root = jnp.sqrt(s / self.scale)
    return u * root, root[:, None] * vt
