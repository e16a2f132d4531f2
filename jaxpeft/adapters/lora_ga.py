"""LoRA-GA: initialize along the loss's gradient [Wang et al. 2024, arXiv:2407.05000].

W' = W + c (A B - A0 B0), where A and B start as A0 and B0, so W' = W at the start. Let
G [in, out] = U S Vt be the loss's gradient with respect to W, averaged over a few
batches. A0 is columns 1 to r of U, and B0 is rows r + 1 to 2 r of Vt (the paper's
"ArB2r"), both multiplied by out^(1/4) / sqrt(gamma). The first change of A B is then as
close as possible to that of full fine-tuning. The published code subtracts c A0 B0 from
W. Here A0 and B0 are kept separately, so that other adapters can share the base and W
is not rounded again. (PEFT's version also multiplies B0 by its singular values.) The
paper's setting (LLaMA2-7B, 100,000 examples of MetaMathQA): rank 32, alpha 8, gamma 16,
gradient of 128 examples, AdamW, learning rate 2e-5, cosine schedule, warm-up 0.03,
batch size 128.
Axes: i in, o out, r rank.
"""

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp

from jaxpeft.adapters import svd
from jaxpeft.adapters.base import check_rank, float32, low_rank
from jaxpeft.adapters.dropout import dropped
from jaxpeft.adapters.lora import LoRA
from jaxpeft.linear import linear

# Iterations of the randomized SVD, which has 4 r columns, as in the published code.
_ITERATIONS = 4


@dataclasses.dataclass(frozen=True)
class LoRAGA(LoRA):
  """LoRA that starts along the singular vectors of the loss's gradient.

  Attributes:
    gamma: divides A0 and B0 by sqrt(gamma); larger values make them smaller.
    batches: the number of batches, from the start of the run's data, over which the
      gradient is averaged.
  """

  gamma: float = 16.0
  batches: int = 4
  dims: ClassVar = LoRA.dims | dict(a0="ir", b0="ro")
  needs_gradient: ClassVar[bool] = True
  keeps: ClassVar[tuple[str, ...]] = ("a0", "b0")

  def check(self, path, shape):
    """As in LoRA; in addition, the weight must have 2 r singular vectors."""
    super().check(path, shape)
    check_rank(2 * self.rank, f"(LoRA-GA: twice the rank) {path}", shape)

  def init(self, key, w, gradient):
    """Frozen leaves w, a0 [in, r], b0 [r, out]; trained leaves a and b, equal to them.

    Args:
      key: PRNG key of the randomized SVD.
      w: the weight [in, out].
      gradient: float[in, out], the loss's gradient with respect to w.
    """
    r = self.rank
    u, _, vt = svd.randomized(key, gradient, 2 * r, _ITERATIONS, 2 * r)
    size = w.shape[1] ** 0.25 / math.sqrt(self.gamma)
    a, b = size * u[:, :r], size * vt[r:]
    return dict(w=w, a0=a, b0=b), dict(a=a, b=b)

  def apply(self, x, frozen, theta):
    """x W + c (x [A, A0]) [B; -B0], where the brackets concatenate along r."""
    h = dropped(x, frozen, self.dropout)
    return linear(x, frozen["w"]) + low_rank(h, *self.lora(frozen, theta))

  def merge(self, frozen, theta):
    """W + c (A B - A0 B0)."""
    change = theta["a"] @ theta["b"] - frozen["a0"] @ frozen["b0"]
    return float32(frozen["w"]) + self.scale * change

  def identity(self, frozen, theta):
    """The initial a0 and b0, for which A B - A0 B0 is zero."""
    return dict(a=frozen["a0"], b=frozen["b0"])

  @property
  def change_rank(self) -> int:
    """2 r, the highest rank of W' - W."""
    return 2 * self.rank

  def lora(self, frozen, theta):
    """(a [in, 2 r], b [2 r, out]) with W' = W + a b; b includes the scale c."""
    a = jnp.concatenate([theta["a"], frozen["a0"]], axis=-1)
    b = jnp.concatenate([theta["b"], -frozen["b0"]], axis=-2)
    return a, self.scale * b
