"""Full fine-tuning as an adapter: W' = theta, for weights, norms and embeddings.

Axes: i in, o out.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from jaxpeft.adapters.base import Adapter
from jaxpeft.linear import linear


@dataclasses.dataclass(frozen=True)
class Full(Adapter):
  """Trains all entries of the weight, in float32 (full fine-tuning)."""

  dims: ClassVar = dict(w="io")
  matrix_only: ClassVar = False
  has_identity: ClassVar[bool] = False  # the base's weight is not kept

  def init(self, key, w):
    """No frozen leaf; trained leaf w, of any shape."""
    del key
    return {}, dict(w=w.astype(jnp.float32))

  def apply(self, x, frozen, theta):
    """x w."""
    del frozen
    return linear(x, theta["w"])

  def merge(self, frozen, theta):
    """The trained weight w."""
    del frozen
    return theta["w"]
