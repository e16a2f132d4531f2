"""LoRA-XS: W' = W + c U_r S_r R Vt_r, with only R [r, r] trained [2405.17604].

Here x meets U, so that all of S is on the input side as in the published code. The
paper's setting for mathematics (Mistral-7B, Gemma-7B, all seven projections): rank 16,
32 or 64, alpha = rank, AdamW, lr 4e-3, cosine, warm-up 0.02, batch 128, two epochs of
MetaMathQA's first 100,000.
Axes: i in, o out, r rank.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxpeft.adapters import frozen_factors, svd
from jaxpeft.adapters.base import Adapter, check_rank, float32
from jaxpeft.errors import unknown
from jaxpeft.linear import dense, linear


@dataclasses.dataclass(frozen=True)
class LoRAXS(Adapter):
  """Trains a small core between the frozen leading singular vectors.

  Attributes:
    rank: size of the core.
    alpha: the scale c is alpha / rank.
    iterations: of a randomized SVD (`svd.randomized`); None is the exact one.
    start: "zero", exactly W; or "reference", R normal with deviation 1e-5 as in the
      published code.
    quantize: "nf4" holds the singular vectors in 4 bits; see `factors`.
  """

  rank: int = 16
  alpha: float = 16.0
  iterations: int | None = None
  start: str = "zero"
  quantize: str = ""
  dims: ClassVar = dict(w="io", u="ir", r="rr", vt="ro", mark="br")

  def __post_init__(self):
    frozen_factors.check_options("LoRAXS", self.quantize)
    if self.start not in ("zero", "reference"):
      raise unknown("LoRAXS start", self.start, ("zero", "reference"))

  def check(self, path, shape):
    """Refuses a rank below 1 or above that of the weight."""
    check_rank(self.rank, path, shape)
    frozen_factors.check(self.quantize, path, shape, self.rank)

  def init(self, key, w):
    """frozen w, u [in, r] = U S, vt [r, out]; theta r [r, r]."""
    key_svd, key_r = jax.random.split(key)
    u, s, vt = svd.leading(key_svd, dense(w), self.rank, self.iterations)
    r = jnp.zeros((self.rank, self.rank))
    if self.start == "reference":
      r = 1e-5 * jax.random.normal(key_r, r.shape)
    frozen = frozen_factors.freeze(u * s, vt, w.dtype, self.quantize)
    return dict(w=w) | frozen, dict(r=r)

  def apply(self, x, frozen, theta):
    """x W + c ((x U S) R) Vt."""
    core = self.alpha / self.rank * theta["r"]
    h = linear(linear(x, frozen["u"]), core)
    return linear(x, frozen["w"]) + linear(h, frozen["vt"])

  def merge(self, frozen, theta):
    """W + c U S R Vt."""
    a, b = self.lora(frozen, theta)
    return float32(frozen["w"]) + a @ b

  @property
  def change_rank(self) -> int:
    """Of W' - W."""
    return self.rank

  def lora(self, frozen, theta):
    """(a, b) with W' = W + a b."""
    a = float32(frozen["u"]) @ (self.alpha / self.rank * theta["r"])
    return a, float32(frozen["vt"])
