"""LoRA-One: start with a low-rank step down the gradient [2025, arXiv:2502.01235].

W' = W + c A B as in LoRA, and A B starts as -U (S / s_1) V' / gamma of the r leading
triplets of the gradient G [in, out] of a few examples: W' does not start at W, but one
step of rank r down from it. Source: the published code (its README scales otherwise);
settings there (LLaMA2-7B): rank 8, alpha 16, rslora, gamma 128, gradient of 8 examples,
AdamW, lr 2e-4, batch 32, 1 epoch. Axes: i in, o out, r rank.
"""

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp

from jaxpeft.adapters import svd
from jaxpeft.adapters.lora import LoRA

_ITERATIONS = 16  # of the randomized SVD, as published
_OVERSAMPLE = 8  # published: 512 columns in all


@dataclasses.dataclass(frozen=True)
class LoRAOne(LoRA):
  """LoRA that starts one low-rank step down the loss's gradient of W.

  Attributes:
    gamma: a larger value makes the step smaller.
    batches: how many of the run's first batches the gradient is averaged over.
  """

  gamma: float = 128.0
  batches: int = 1
  needs_gradient: ClassVar[bool] = True

  def init(self, key, w, gradient):
    """frozen w; theta a, b with a b down the gradient; zero where that is zero."""
    u, s, vt = svd.randomized(key, gradient, self.rank, _ITERATIONS, _OVERSAMPLE)
    size = jnp.sqrt(s / jnp.where(s[0] > 0, s[0], 1.0)) / math.sqrt(self.gamma)
    return dict(w=w), dict(a=-size * u, b=size[:, None] * vt)
