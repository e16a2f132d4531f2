"""NoRA: LoRA with a Nystrom initialization [ICLR 2025, arXiv:2410.18965].

W' = W + c A B. A starts as sigma W Omega / c, where Omega [out, r] is standard normal,
so A lies in the column space of W. B starts at zero, so W' = W at the start. NoRA+ is
NoRA with the option `optim.precondition`. The published code assigns the initial A to
an attribute that nothing reads, so it trains ordinary LoRA; this file follows the
paper's formulas instead. The paper's settings (LLaMA2-7B, q, k, v, up and down): rank
32, alpha 64, sigma 0.02 (NoRA+: 0.1), AdamW, learning rate 3e-4, linear schedule, 100
warm-up steps, batch size 16, three epochs.
Axes: i in, o out, r rank.
"""

import dataclasses

import jax

from jaxpeft.adapters.base import float32
from jaxpeft.adapters.lora import LoRA


@dataclasses.dataclass(frozen=True)
class NoRA(LoRA):
  """LoRA whose factor A starts as a random sketch of the weight.

  Attributes:
    sigma: the scale of the initial A.
  """

  sigma: float = 0.02

  def init(self, key, w):
    """Frozen leaf w; trained leaves a [in, r], w's sketch, and b [r, out], zero."""
    frozen, theta = super().init(key, w)
    omega = jax.random.normal(key, (w.shape[1], self.rank))
    return frozen, theta | dict(a=self.sigma / self.scale * (float32(w) @ omega))
