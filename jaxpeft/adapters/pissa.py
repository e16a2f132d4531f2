"""PiSSA: train W's leading singular part and freeze the rest [Meng et al. 2024].

arXiv:2404.02948. W' = (W - c A0 B0) + c A B. If U, S, Vt are the r leading singular
triplets of W, then A0 is U sqrt(S / c) and B0 is sqrt(S / c) Vt. A and B start as A0
and B0. The paper's setting: rank 128, alpha 128, AdamW, learning rate 2e-5, cosine
schedule, warm-up 0.03, batch size 128, one epoch over the first 100,000 examples of
MetaMathQA. Its code uses a randomized SVD with 16 iterations.
Axes: i in, o out, r rank.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from jaxpeft.adapters import svd
from jaxpeft.adapters.residual import Residual


@dataclasses.dataclass(frozen=True)
class PiSSA(Residual):
  """Trains the leading singular triplets of the weight, as LoRA factors.

  Attributes:
    iterations: the number of iterations of a randomized SVD; 0 or None computes the
      exact SVD, which takes 10 to 20 times as long.
  """

  was: ClassVar = dict(iterations=0)
  iterations: int | None = 16

  def start(self, key, w):
    """(a0 [in, r], b0 [r, out]), from the leading singular triplets of w."""
    u, s, vt = svd.leading(key, w, self.rank, self.iterations)
    root = jnp.sqrt(s / self.scale)
    return u * root, root[:, None] * vt
