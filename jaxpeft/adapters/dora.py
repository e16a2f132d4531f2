"""DoRA: W' = m (W + c A B) / ||W + c A B|| [Liu et al. 2024, arXiv:2402.09353].

m and the norms are per column of W (per output). The norm is a constant to the
gradient, as in section 4.3 of the paper and in Hugging Face PEFT. The paper's setting
for LLaMA-7B: rank 32, alpha 64, AdamW, lr 2e-4, on q, k, v, up and down.
Axes: i in, o out, r rank.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxpeft.adapters.base import float32, low_rank
from jaxpeft.adapters.lora import LoRA
from jaxpeft.linear import linear


@dataclasses.dataclass(frozen=True)
class DoRA(LoRA):
  """LoRA changes the direction of each column, and a trained vector its length."""

  dims: ClassVar = LoRA.dims | dict(m="o", square="o")

  def init(self, key, w):
    """frozen w and its columns' squared norms; theta a, b, m [out] = the norms."""
    frozen, theta = super().init(key, w)
    square = jnp.sum(jnp.square(float32(w)), 0)
    return frozen | dict(square=square), theta | dict(m=jnp.sqrt(square))

  def apply(self, x, frozen, theta):
    """(x W + c (x A) B) m / norm."""
    y = linear(x, frozen["w"]) + low_rank(x, theta["a"], self.scale * theta["b"])
    factor = theta["m"] / self._norm(frozen, theta, x.dtype)
    return y * factor.astype(x.dtype)

  def merge(self, frozen, theta):
    """(W + c A B) m / norm."""
    w = super().merge(frozen, theta)
    return w * (theta["m"] / jnp.maximum(jnp.linalg.norm(w, axis=0), 1e-15))

  def identity(self, frozen, theta):
    """No update, and the norms of W's columns."""
    zeros = super().identity(frozen, theta)
    return zeros | dict(m=jnp.sqrt(frozen["square"]))

  @property
  def change_rank(self) -> None:
    """None: columns are rescaled, so W' - W has full rank."""
    return None

  def lora(self, frozen, theta):
    """None; see `change_rank`."""
    return None

  def _norm(self, frozen, theta, dtype):
    """float32[out]: the columns' norms of W + c A B, not forming that matrix."""
    a, b = theta["a"], self.scale * theta["b"]
    cross = linear(a.T.astype(dtype), frozen["w"]).astype(jnp.float32)
    square = frozen["square"] + jnp.sum((2 * cross + (a.T @ a) @ b) * b, 0)
    return jax.lax.stop_gradient(jnp.sqrt(jnp.maximum(square, 1e-30)))
