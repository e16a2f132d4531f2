"""(IA)3: W' = W diag(l) or diag(l) W [Liu et al. 2022, arXiv:2205.05638].

The trained vector l has one factor for each output of W, or for each input. The paper
scales keys and values (the outputs of k and v) and the MLP's hidden activations (the
inputs of down). Its setting: Adafactor, learning rate 3e-3, linear decay, 60 warm-up
steps.
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
  """Multiplies the weight's outputs, or its inputs, by a trained vector.

  Attributes:
    on: what is multiplied: "output" (the paper's choice for k and v) or "input" (for
      down).
  """

  on: str = "output"
  dims: ClassVar = dict(w="io", out="o", into="i")

  def __post_init__(self):
    if self.on not in ("output", "input"):
      raise unknown("IA3 on", self.on, ("output", "input"))

  def init(self, key, w):
    """Frozen leaf w; trained leaf out [out] or into [in], which is l, all ones."""
    del key
    if self.on == "output":
      return dict(w=w), dict(out=jnp.ones(w.shape[1]))
    return dict(w=w), dict(into=jnp.ones(w.shape[0]))

  def apply(self, x, frozen, theta):
    """(x W) diag(l), or (x diag(l)) W."""
    if self.on == "output":
      return linear(x, frozen["w"]) * theta["out"].astype(x.dtype)
    return linear(x * theta["into"].astype(x.dtype), frozen["w"])

  def merge(self, frozen, theta):
    """W diag(l), or diag(l) W."""
    w = float32(frozen["w"])
    return w * theta["out"] if self.on == "output" else theta["into"][:, None] * w

  def identity(self, frozen, theta):
    """All ones, because these factors leave W unchanged."""
    del frozen
    return jax.tree.map(jnp.ones_like, theta)
