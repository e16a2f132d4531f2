"""LoRA and rsLoRA: W' = W + c A B [Hu et al. 2021, arXiv:2106.09685].

c = alpha / rank, or alpha / sqrt(rank) [Kalajdzievski 2023, arXiv:2312.03732]. The
start is that of Hugging Face PEFT: A uniform in +-1/sqrt(in), B zero, so W' = W.
Axes: i in, o out, r rank.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxpeft.adapters.base import Adapter, check_rank, float32, low_rank
from jaxpeft.errors import InputError
from jaxpeft.linear import linear


@dataclasses.dataclass(frozen=True)
class LoRA(Adapter):
  """Low-rank update beside the frozen weight.

  Attributes:
    rank: columns of A.
    alpha: numerator of the scale c.
    rslora: divide alpha by sqrt(rank) instead of rank.
  """

  rank: int = 8
  alpha: float = 8.0
  rslora: bool = False
  dims: ClassVar = dict(w="io", a="ir", b="ro")

  def check(self, path, shape):
    """Refuses a rank below 1 or above that of the weight, or an alpha of nothing."""
    check_rank(self.rank, path, shape)
    if not self.alpha > 0:
      raise InputError(f"alpha {self.alpha} of the adapter on {path} is not above 0")

  @property
  def scale(self) -> float:
    """c, which multiplies A B."""
    return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

  def init(self, key, w):
    """frozen w; theta a [in, r] uniform, b [r, out] zero."""
    bound = 1 / math.sqrt(w.shape[0])
    a = jax.random.uniform(key, (w.shape[0], self.rank), minval=-bound, maxval=bound)
    return dict(w=w), dict(a=a, b=jnp.zeros((self.rank, w.shape[1])))

  def apply(self, x, frozen, theta):
    """x W + c (x A) B."""
    # The scale is folded into B: one small product instead of one over [B, T, out].
    return linear(x, frozen["w"]) + low_rank(x, theta["a"], self.scale * theta["b"])

  def merge(self, frozen, theta):
    """W + c A B."""
    return float32(frozen["w"]) + self.scale * theta["a"] @ theta["b"]

  @property
  def change_rank(self) -> int:
    """Of W' - W."""
    return self.rank

  def lora(self, frozen, theta):
    """(a, b) with W' = W + a b."""
    del frozen
    return theta["a"], self.scale * theta["b"]
