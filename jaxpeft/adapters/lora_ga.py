"""LoRA-GA: start along the loss's gradient [Wang et al. 2024, arXiv:2407.05000].

W' = W + c (A B - A0 B0). With the gradient G [in, out] = U S V' of a few batches, A0 is
U's columns 1 to r and B0 V's columns r+1 to 2r ("ArB2r"), each times out^(1/4) /
sqrt(gamma), so that the first step of A B is the nearest to full fine-tuning's. The
published code takes c A0 B0 out of W; here it stays beside W, so that the base is
shared with other adapters and nothing is rounded. (PEFT's version also multiplies B0 by
its singular values.) Settings for LLaMA2-7B and 100,000 examples of MetaMathQA: rank
32, alpha 8, gamma 16, gradient of 128 examples, AdamW, lr 2e-5, cosine, warm-up 0.03,
batch 128. Axes: i in, o out, r rank.
"""

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp

from jaxpeft.adapters import svd
from jaxpeft.adapters.base import check_rank, float32, low_rank
from jaxpeft.adapters.lora import LoRA
from jaxpeft.linear import linear

_ITERATIONS = 4  # of the randomized SVD, of twice the columns, as published


@dataclasses.dataclass(frozen=True)
class LoRAGA(LoRA):
  """LoRA whose start approximates the loss's gradient of W.

  Attributes:
    gamma: a larger value makes the start smaller.
    batches: how many of the run's first batches the gradient is averaged over.
  """

  gamma: float = 16.0
  batches: int = 4
  dims: ClassVar = LoRA.dims | dict(a0="ir", b0="ro")
  needs_gradient: ClassVar[bool] = True
  keeps: ClassVar[tuple[str, ...]] = ("a0", "b0")

  def check(self, path, shape):
    """As LoRA's; and 2 rank singular vectors must exist."""
    super().check(path, shape)
    check_rank(2 * self.rank, f"(LoRA-GA: twice the rank) {path}", shape)

  def init(self, key, w, gradient):
    """frozen w, a0, b0; theta a, b: the same start; zero where that is zero."""
    r = self.rank
    u, _, vt = svd.randomized(key, gradient, 2 * r, _ITERATIONS, 2 * r)
    size = w.shape[1] ** 0.25 / math.sqrt(self.gamma)
    a, b = size * u[:, :r], size * vt[r:]
    return dict(w=w, a0=a, b0=b), dict(a=a, b=b)

  def apply(self, x, frozen, theta):
    """x W + c x [A A0] [B; -B0]."""
    return linear(x, frozen["w"]) + low_rank(x, *self.lora(frozen, theta))

  def merge(self, frozen, theta):
    """W + c (A B - A0 B0)."""
    change = theta["a"] @ theta["b"] - frozen["a0"] @ frozen["b0"]
    return float32(frozen["w"]) + self.scale * change

  def identity(self, frozen, theta):
    """The start."""
    return dict(a=frozen["a0"], b=frozen["b0"])

  @property
  def change_rank(self) -> int:
    """Of W' - W."""
    return 2 * self.rank

  def lora(self, frozen, theta):
    """(a [in, 2r], b [2r, out]) with W' = W + a b."""
    a = jnp.concatenate([theta["a"], frozen["a0"]], axis=-1)
    b = jnp.concatenate([theta["b"], -frozen["b0"]], axis=-2)
    return a, self.scale * b
