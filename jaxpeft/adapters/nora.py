"""NoRA: LoRA with a Nystrom start, A = sigma W Omega / c [2410.18965, ICLR 2025].

Omega [out, r] is standard normal and B is zero, so W' = W, and A lies in W's column
space. Together with `optim.precondition` it is NoRA+. The published code assigns its
sketch to an attribute that nothing reads, and trains ordinary LoRA; this is what its
mathematics says. Its settings (LLaMA2-7B, q, k, v, up and down): rank 32, alpha 64,
sigma 0.02 (NoRA+: 0.1), AdamW, lr 3e-4, linear, 100 warm-up steps, batch 16, 3 epochs.
Axes: i in, o out, r rank.
"""

import dataclasses

import jax

from jaxpeft.adapters.base import float32
from jaxpeft.adapters.lora import LoRA


@dataclasses.dataclass(frozen=True)
class NoRA(LoRA):
  """LoRA whose A starts as a random sketch of W.

  Attributes:
    sigma: scale of the sketch.
  """

  sigma: float = 0.02

  def init(self, key, w):
    """frozen w; theta a [in, r] = sigma w omega / c, b [r, out] zero."""
    frozen, theta = super().init(key, w)
    omega = jax.random.normal(key, (w.shape[1], self.rank))
    return frozen, theta | dict(a=self.sigma / self.scale * (float32(w) @ omega))
