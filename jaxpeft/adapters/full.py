"""Full fine-tuning as an adapter: W' = theta. Any leaf, also norms and embeddings."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from jaxpeft.adapters.base import Adapter
from jaxpeft.linear import linear


@dataclasses.dataclass(frozen=True)
class Full(Adapter):
  """Trains the whole weight, in float32."""

  dims: ClassVar = dict(w="io")
  matrix_only: ClassVar = False

  def init(self, key, w):
    """w of any shape."""
    del key
    return {}, dict(w=w.astype(jnp.float32))

  def apply(self, x, frozen, theta):
    """x @ w."""
    del frozen
    return linear(x, theta["w"])

  def merge(self, frozen, theta):
    """The weight itself."""
    del frozen
    return theta["w"]

  def identity(self, frozen, theta):
    """None: the base's weight is not kept."""
    return None
