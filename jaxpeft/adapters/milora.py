"""MiLoRA: train W's last singular part, freeze the rest [Wang et al. 2024, 2406.09044].

PiSSA with the r least singular values. The paper's setting (LLaMA2-7B, MetaMathQA,
q, k, v, up and down): rank 64, alpha 64, AdamW, lr 3e-4, linear, 100 warm-up steps,
batch 16, three epochs.
Axes: i in, o out, r rank.
"""

import dataclasses

import jax.numpy as jnp

from jaxpeft.adapters import svd
from jaxpeft.adapters.residual import Residual


@dataclasses.dataclass(frozen=True)
class MiLoRA(Residual):
  """LoRA that starts as the last singular triplets of W; the rest is frozen."""

  def start(self, key, w):
    """(a0 [in, r], b0 [r, out])."""
    del key
    u, s, vt = svd.svd(w)
    root = jnp.sqrt(s[-self.rank :] / self.scale)
    return u[:, -self.rank :] * root, root[:, None] * vt[-self.rank :]
