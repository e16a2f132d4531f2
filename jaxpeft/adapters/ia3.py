"""(IA)3: a trained factor per output or per input of W [Liu et al. 2022, 2205.05638].

The paper scales keys and values (outputs of k and v) and the MLP's hidden activations
(inputs of down). Its setting: Adafactor, lr 3e-3, linear, 60 warm-up steps.
Axes: i in, o out.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxpeft.adapters.base import Adapter, float32
from jaxpeft.errors import unknown
from jaxpeft.linear import linear


@dataclasses.dataclass(frozen=True)
class IA3(Adapter):
  """Scales the outputs, or the inputs, of a weight by a trained vector.

  Attributes:
    on: "output" (for k and v) or "input" (for down).
  """

  on: str = "output"
  dims: ClassVar = dict(w="io", out="o", into="i")

  def __post_init__(self):
    if self.on not in ("output", "input"):
      raise unknown("IA3 on", self.on, ("output", "input"))

  def init(self, key, w):
    """frozen w; theta out [out] or into [in], ones."""
    del key
    if self.on == "output":
      return dict(w=w), dict(out=jnp.ones(w.shape[1]))
    return dict(w=w), dict(into=jnp.ones(w.shape[0]))

  def apply(self, x, frozen, theta):
    """(x W) l, or (x l) W."""
    if self.on == "output":
      return linear(x, frozen["w"]) * theta["out"].astype(x.dtype)
    return linear(x * theta["into"].astype(x.dtype), frozen["w"])

  def merge(self, frozen, theta):
    """W with its columns, or its rows, scaled."""
    w = float32(frozen["w"])
    return w * theta["out"] if self.on == "output" else theta["into"][:, None] * w

  def identity(self, frozen, theta):
    """Ones."""
    del frozen
    return jax.tree.map(jnp.ones_like, theta)
