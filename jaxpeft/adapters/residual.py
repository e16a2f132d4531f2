"""LoRA that starts as a part of W, and freezes the rest of W.

Axes: i in, o out, r rank.
"""

import dataclasses

import jax.numpy as jnp

from jaxpeft.adapters.base import float32
from jaxpeft.adapters.lora import LoRA
from jaxpeft.errors import InputError
from jaxpeft.linear import is_node


@dataclasses.dataclass(frozen=True)
class Residual(LoRA):
  """W' = (W - c A0 B0) + c A B; a method says what A0 and B0 are."""

  def start(self, key, w):
    """(a0 [in, r], b0 [r, out]), float32, of a weight w [in, out]."""
    raise NotImplementedError

  def init(self, key, w):
    """frozen w - c a0 b0; theta a, b.

    a0 and b0 are rounded to w's dtype first: products round them so anyway, and what
    is left of w makes up for it. W' starts as W up to the rounding of what is left.
    """
    if is_node(w):
      raise InputError(
        f"{type(self).__name__} freezes what is left of W, which 4 bits would round "
        "again; use it with model.quantize='', or another method over a 4-bit base"
      )
    a, b = (x.astype(w.dtype).astype(jnp.float32) for x in self.start(key, w))
    rest = float32(w) - self.scale * (a @ b)
    return dict(w=rest.astype(w.dtype)), dict(a=a, b=b)

  @property
  def change_rank(self) -> int:
    """W' - W is c A B - c A0 B0."""
    return 2 * self.rank

  def lora(self, frozen, theta):
    """None: the frozen part is not W."""
    return None

  def identity(self, frozen, theta):
    """None: what is frozen is not W."""
    return None
