"""LoRA-One: initialize to a low-rank gradient step [Zhang et al. 2025].

arXiv:2502.01235. W' = W + c A B, as in LoRA. A B starts as -U (S / s_1) Vt / gamma.
Here U, S, Vt are the r leading singular triplets of the loss's gradient G [in, out]
with respect to W, averaged over a few examples, and s_1 is the largest singular value.
W' therefore starts one gradient step of rank r away from W, not at W.
Source: the published code (its README describes a different scale). Its setting
(LLaMA2-7B): rank 8, alpha 16, rslora, gamma 128, gradient of 8 examples, AdamW,
learning rate 2e-4, batch size 32, one epoch.
Axes: i in, o out, r rank.
"""

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp

from jaxpeft.adapters import svd
from jaxpeft.adapters.lora import LoRA

_ITERATIONS = 16  # iterations of the randomized SVD, as in the published code
_OVERSAMPLE = 8  # columns besides the r; the published code has 512 columns in total


@dataclasses.dataclass(frozen=True)
class LoRAOne(LoRA):
  """LoRA that starts with one low-rank step against the loss's gradient.

  Attributes:
    gamma: divides the step; larger values make it smaller.
    batches: the number of batches, from the start of the run's data, over which the
      gradient is averaged.
  """

  gamma: float = 128.0
  batches: int = 1
  needs_gradient: ClassVar[bool] = True

  def init(self, key, w, gradient):
    """Frozen leaf w; trained leaves a [in, r] and b [r, out].

    Args:
      key: PRNG key of the randomized SVD.
      w: the weight [in, out].
      gradient: float[in, out], the loss's gradient with respect to w. If it is zero, a
        and b are zero.
    """
    u, s, vt = svd.randomized(key, gradient, self.rank, _ITERATIONS, _OVERSAMPLE)
    size = jnp.sqrt(s / jnp.where(s[0] > 0, s[0], 1.0)) / math.sqrt(self.gamma)
    return dict(w=w), dict(a=-size * u, b=size[:, None] * vt)
