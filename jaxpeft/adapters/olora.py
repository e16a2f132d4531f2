"""OLoRA: initialize from a QR decomposition of W [Buyukakyuz 2024, arXiv:2406.01775].

W' = (W - c A0 B0) + c A B. Let Q R be the QR decomposition of W's transpose [out, in],
as in Hugging Face PEFT. A0 is the transpose of the first r rows of R, and B0 is the
transpose of the first r columns of Q. A and B start as A0 and B0.
Axes: i in, o out, r rank.
"""

import dataclasses

import jax.numpy as jnp

from jaxpeft.adapters.base import float32
from jaxpeft.adapters.residual import Residual


@dataclasses.dataclass(frozen=True)
class OLoRA(Residual):
  """Trains the leading part of the weight's QR decomposition, as LoRA factors."""

  def start(self, key, w):
    """(a0 [in, r], b0 [r, out]), from the QR decomposition of w's transpose."""
    del key
    q, r = jnp.linalg.qr(float32(w).T)
    return r[: self.rank].T, q[:, : self.rank].T
