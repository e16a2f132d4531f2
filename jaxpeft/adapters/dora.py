"""DoRA: W' = m (W + c A B) / ||W + c A B|| [Liu et al. 2024, arXiv:2402.09353].

m and the norms have one entry for each column of W, i.e. for each output. Gradients
treat the norms as constants, as in section 4.3 of the paper and in Hugging Face PEFT.
The paper's setting for LLaMA-7B: rank 32, alpha 64, AdamW, learning rate 2e-4, on q, k,
v, up and down.
Axes: i in, o out, r rank.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxpeft.adapters.base import float32, low_rank
from jaxpeft.adapters.dropout import dropped
from jaxpeft.adapters.lora import LoRA
from jaxpeft.linear import linear


@dataclasses.dataclass(frozen=True)
class DoRA(LoRA):
  """Trains each column's direction with LoRA, and its length with a separate vector."""

  dims: ClassVar = LoRA.dims | dict(m="o", square="o")

  def init(self, key, w):
    """The initial leaves.

    Returns:
      frozen: w [in, out], and square [out], the squared norms of its columns.
      theta: a [in, r] and b [r, out] as in LoRA, and m [out], the norms themselves.
    """
    frozen, theta = super().init(key, w)
    square = jnp.sum(jnp.square(float32(w)), 0)
    return frozen | dict(square=square), theta | dict(m=jnp.sqrt(square))

  def apply(self, x, frozen, theta):
    """(x W + c (x A) B) m / ||W + c A B||."""
    y, h = linear(x, frozen["w"]), dropped(x, frozen, self.dropout)
    update = low_rank(h, theta["a"], self.scale * theta["b"])
    whole = y + update
    factor = (theta["m"] / self._norm(frozen, theta, x.dtype)).astype(x.dtype)
    if h is x:
      return whole * factor
    # As in PEFT: what DoRA changes of x W is dropped, too, but x W itself is not.
    return y + (factor - 1) * linear(h, frozen["w"]) + factor * update

  def merge(self, frozen, theta):
    """(W + c A B) m / ||W + c A B||."""
    w = super().merge(frozen, theta)
    return w * (theta["m"] / jnp.maximum(jnp.linalg.norm(w, axis=0), 1e-15))

  def identity(self, frozen, theta):
    """Zeros for a and b, and the norms of W's columns for m."""
    zeros = super().identity(frozen, theta)
    return zeros | dict(m=jnp.sqrt(frozen["square"]))

  @property
  def change_rank(self) -> None:
    """None, because rescaling the columns changes W with full rank."""
    return None

  def lora(self, frozen, theta):
    """None, because W' - W does not have low rank."""
    return None

  def _norm(self, frozen, theta, dtype):
    """The column norms of W + c A B, float32[out], computed without forming it."""
    a, b = theta["a"], self.scale * theta["b"]
    cross = linear(a.T.astype(dtype), frozen["w"]).astype(jnp.float32)
    square = frozen["square"] + jnp.sum((2 * cross + (a.T @ a) @ b) * b, 0)
    return jax.lax.stop_gradient(jnp.sqrt(jnp.maximum(square, 1e-30)))
