"""MiLoRA: train W's smallest singular part and freeze the rest [Wang et al. 2024].

arXiv:2406.09044. W' = (W - c A0 B0) + c A B, where c A0 B0 is the part of W that
belongs to its r smallest singular values (PiSSA takes the largest ones). A and B start
as A0 and B0. The paper's setting (LLaMA2-7B, MetaMathQA, q, k, v, up and down): rank
64, alpha 64, AdamW, learning rate 3e-4, linear schedule, 100 warm-up steps, batch size
16, three epochs.
Axes: i in, o out, r rank.
"""

import dataclasses

import jax.numpy as jnp

from jaxpeft.adapters import svd
from jaxpeft.adapters.residual import Residual


@dataclasses.dataclass(frozen=True)
class MiLoRA(Residual):
  """Trains the smallest singular triplets of the weight, as LoRA factors."""

  def start(self, key, w):
    """(a0 [in, r], b0 [r, out]), from the smallest singular triplets of w."""
    del key
    u, s, vt = svd.svd(w)
    root = jnp.sqrt(s[-self.rank :] / self.scale)
    return u[:, -self.rank :] * root, root[:, None] * vt[-self.rank :]
