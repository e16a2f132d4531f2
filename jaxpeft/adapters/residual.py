"""The base class of methods that train a low-rank part of W and freeze the rest of it.

W' = (W - c A0 B0) + c A B. The trained A and B start as A0 and B0, so W' = W at the
start. The rest of W, which is W - c A0 B0, is frozen, optionally in 4 bits. PiSSA,
MiLoRA, OLoRA and LoftQ are such methods.
Source: Meng et al. 2024, arXiv:2404.02948, which also describes 4 bits (QPiSSA).
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
  """W' = (W - c A0 B0) + c A B; a subclass defines A0 and B0 in `start`.

  Attributes:
    quantize: "nf4" freezes the rest of W in 4 bits (QPiSSA, QMiLoRA), "" in W's dtype.
      In 4 bits, W' starts closer to W than W rounded to 4 bits would be. The base must
      not be quantized.
    rounds: with "nf4", the number of times A0 and B0 are computed. The first round
      computes them from W; each later round computes them from W minus the 4-bit rest
      of the previous round. PiSSA's code (`init_qpissa.py`) uses 5 rounds.
  """

  has_identity: ClassVar[bool] = False  # W itself is not kept
  keeps_base: ClassVar[bool] = False
  decomposes: ClassVar[bool] = True
  quantize: str = ""
  rounds: int = 1

  def __post_init__(self):
    super().__post_init__()
    if self.quantize not in ("", "nf4"):
      raise unknown(f"{type(self).__name__} quantize", self.quantize, ("", "nf4"))
    if self.rounds < 1 or (self.rounds > 1 and not self.quantize):
      name = type(self).__name__
      raise InputError(
        f"{name} rounds {self.rounds} needs quantize='nf4'; without it rounds must be 1"
      )

  def check(self, path, shape):
    """As in LoRA; for 4 bits, the weight must also divide into blocks."""
    super().check(path, shape)
    if self.quantize:
      nf4.check(path, shape)

  def check_base(self, w):
    """Raises InputError if the base's weight is in 4 bits."""
    if is_node(w):
      name = type(self).__name__
      raise InputError(
        f"{name} freezes the rest of W, which 4 bits would round a second time because "
        "the base is already in 4 bits; load the base with model.quantize='', and set "
        f"{name}'s own option quantize='nf4'"
      )

  def start(self, key, w):
    """The initial factors (a0 [in, r], b0 [r, out]), float32, which a subclass defines.

    Args:
      key: PRNG key.
      w: float[in, out], the weight to take the low-rank part c A0 B0 from.
    """
    raise NotImplementedError

  def init(self, key, w):
    """Frozen leaf w, here W - c A0 B0; trained leaves a and b, equal to A0 and B0.

    A0 and B0 are rounded to w's dtype before c A0 B0 is subtracted. Products with them
    would round them anyway; this way the frozen rest compensates for that error, and W'
    starts as W up to the rounding of the rest itself.
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
    """2 r, the rank of c (A B - A0 B0); None in 4 bits: their error has full rank."""
    return None if self.quantize else 2 * self.rank

  def lora(self, frozen, theta):
    """None, because the frozen part is not W."""
    return None
