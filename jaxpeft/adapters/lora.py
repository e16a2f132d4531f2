"""LoRA and rsLoRA: W' = W + c A B [Hu et al. 2021, arXiv:2106.09685].

The scale c is alpha / rank for LoRA and alpha / sqrt(rank) for rsLoRA [Kalajdzievski
2023, arXiv:2312.03732]. Both are initialized as in Hugging Face PEFT: A is uniform in
[-1/sqrt(in), 1/sqrt(in)] and B is zero, so that W' = W at the start.
Axes: i in, o out, r rank.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxpeft.adapters.base import Adapter, check_rank, float32, low_rank
from jaxpeft.adapters.dropout import dropped
from jaxpeft.errors import InputError
from jaxpeft.linear import linear


@dataclasses.dataclass(frozen=True)
class LoRA(Adapter):
  """Adds a trained low-rank update c A B to the frozen weight.

  Attributes:
    rank: r, the number of columns of A and of rows of B.
    alpha: the numerator of the scale c = alpha / rank.
    rslora: if True, the scale c is alpha / sqrt(rank) instead.
    dropout: the share of the update's inputs that a training step sets to zero; 0 is
      none. See `dropout`.
  """

  rank: int = 8
  alpha: float = 8.0
  rslora: bool = False
  dropout: float = 0.0
  dims: ClassVar = dict(w="io", a="ir", b="ro")

  def __post_init__(self):
    """Raises InputError if alpha or dropout is out of range."""
    if not 0 <= self.dropout < 1:
      raise InputError(f"dropout {self.dropout} is not in [0, 1); 0 is none")
    if not self.alpha > 0:
      raise InputError(f"alpha {self.alpha} is not above 0")

  def check(self, path, shape):
    """Raises InputError if the rank is out of range."""
    check_rank(self.rank, path, shape)

  @property
  def scale(self) -> float:
    """c, the factor by which A B is multiplied."""
    return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

  def init(self, key, w):
    """Frozen leaf w; trained leaves a [in, r], uniform, and b [r, out], zero."""
    bound = 1 / math.sqrt(w.shape[0])
    a = jax.random.uniform(key, (w.shape[0], self.rank), minval=-bound, maxval=bound)
    return dict(w=w), dict(a=a, b=jnp.zeros((self.rank, w.shape[1])))

  def apply(self, x, frozen, theta):
    """x W + c (x A) B."""
    # Scaling B [r, out] is cheaper than scaling the result [..., out].
    h = dropped(x, frozen, self.dropout)
    return linear(x, frozen["w"]) + low_rank(h, theta["a"], self.scale * theta["b"])

  def merge(self, frozen, theta):
    """W + c A B."""
    return float32(frozen["w"]) + self.scale * theta["a"] @ theta["b"]

  @property
  def change_rank(self) -> int:
    """r, the rank of W' - W."""
    return self.rank

  def lora(self, frozen, theta):
    """(a [in, r], b [r, out]) with W' = W + a b; b includes the scale c."""
    del frozen
    return theta["a"], self.scale * theta["b"]
