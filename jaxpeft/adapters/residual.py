"""LoRA that starts as a part of W and freezes the rest, in 4 bits if wanted.

Axes: i in, o out, r rank.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from jaxpeft.adapters.base import float32
from jaxpeft.adapters.lora import LoRA
from jaxpeft.errors import InputError, unknown
from jaxpeft.linear import is_node
from jaxpeft.quantization import nf4


@dataclasses.dataclass(frozen=True)
class Residual(LoRA):
  """W' = (W - c A0 B0) + c A B; a method says what A0 and B0 are.

  Attributes:
    quantize: "nf4" freezes the rest of W in 4 bits (QPiSSA, QMiLoRA): W' starts nearer
      to W than W in 4 bits is. The base itself is given unquantized.
    rounds: of A0 B0 as part of what 4 bits left of W in the round before [PiSSA's
      code, `init_qpissa.py`: 5]; 1 is W's own part.
  """

  keeps_base: ClassVar[bool] = False
  quantize: str = ""
  rounds: int = 1

  def __post_init__(self):
    if self.quantize not in ("", "nf4"):
      raise unknown(f"{type(self).__name__} quantize", self.quantize, ("", "nf4"))
    if self.rounds < 1 or (self.rounds > 1 and not self.quantize):
      raise InputError(f"{type(self).__name__} rounds {self.rounds} needs quantize")

  def check(self, path, shape):
    """As LoRA's; 4 bits come in whole blocks."""
    super().check(path, shape)
    if self.quantize:
      nf4.check(path, shape)

  def check_base(self, w):
    """Refuses a base in 4 bits."""
    if is_node(w):
      name = type(self).__name__
      raise InputError(
        f"{name} freezes what is left of W, which 4 bits would round again: load the "
        f"base with model.quantize='', and give {name} quantize='nf4'"
      )

  def start(self, key, w):
    """(a0 [in, r], b0 [r, out]), float32, of a weight w [in, out]."""
    raise NotImplementedError

  def init(self, key, w):
    """frozen w - c a0 b0; theta a, b.

    a0 and b0 are rounded to w's dtype first: products round them so anyway, and what
    is left of w makes up for it. W' starts as W up to the rounding of what is left.
    """
    self.check_base(w)
    part = w
    for _ in range(self.rounds):
      a, b = (x.astype(w.dtype).astype(jnp.float32) for x in self.start(key, part))
      rest = (float32(w) - self.scale * (a @ b)).astype(w.dtype)
      rest = nf4.quantize(rest) if self.quantize else rest
      part = float32(w) - float32(rest)
    return dict(w=rest), dict(a=a, b=b)

  @property
  def change_rank(self) -> int | None:
    """W' - W is c A B - c A0 B0, and what 4 bits round."""
    return None if self.quantize else 2 * self.rank

  def lora(self, frozen, theta):
    """None: the frozen part is not W."""
    return None

  def identity(self, frozen, theta):
    """None: what is frozen is not W."""
    return None
