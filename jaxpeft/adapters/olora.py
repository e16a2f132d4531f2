"""OLoRA: start from a QR decomposition of W [Buyukakyuz 2024, arXiv:2406.01775].

With W's transpose [out, in] = Q R, as Hugging Face PEFT has it: A holds the first r
rows of R, B the first r columns of Q, and W - c A B stays frozen.
Axes: i in, o out, r rank.
"""

import dataclasses

import jax.numpy as jnp

from jaxpeft.adapters.base import float32
from jaxpeft.adapters.residual import Residual


@dataclasses.dataclass(frozen=True)
class OLoRA(Residual):
  """LoRA that starts from a QR decomposition of W; the rest is frozen."""

  def start(self, key, w):
    """(a0 [in, r], b0 [r, out])."""
    del key
    q, r = jnp.linalg.qr(float32(w).T)
    return r[: self.rank].T, q[:, : self.rank].T
