"""LoRA-XS: W' = W + c U S R Vt; only R [r, r] is trained [Balazy et al. 2024].

arXiv:2405.17604. The scale c is alpha / rank, and U, S, Vt are the r leading singular
triplets of W. As in the published code, S multiplies the factor on the input side,
which is U here. The paper's setting for mathematics (Mistral-7B and Gemma-7B, all seven
projections): rank 16, 32 or 64, alpha equal to the rank, AdamW, learning rate 4e-3,
cosine schedule, warm-up 0.02, batch size 128, two epochs over the first 100,000
examples of MetaMathQA.
Axes: i in, o out, r rank, b 2 (see `frozen_factors`).
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
  """Trains a small matrix R between the weight's frozen leading singular vectors.

  Attributes:
    rank: r, the size of R.
    alpha: the numerator of the scale c = alpha / rank.
    iterations: the number of iterations of a randomized SVD; 0 or None computes the
      exact SVD, which takes 10 to 20 times as long.
    start: the initial R. "zero" is zero, so that W' = W. "reference" is drawn from a
      normal distribution with standard deviation 1e-5, as in the published code.
    quantize: "nf4" stores U S and Vt in 4 bits, "" in W's dtype; see `frozen_factors`.
  """

  decomposes: ClassVar[bool] = True
  rank: int = 16
  alpha: float = 16.0
  iterations: int | None = 16
  start: str = "zero"
  quantize: str = ""
  was: ClassVar = dict(iterations=0)
  dims: ClassVar = dict(w="io", u="ir", r="rr", vt="ro", mark="br")

  def __post_init__(self):
    frozen_factors.check_options("LoRAXS", self.quantize)
    if self.start not in ("zero", "reference"):
      raise unknown("LoRAXS start", self.start, ("zero", "reference"))

  def check(self, path, shape):
    """Raises InputError if rank is not in 1 .. min(in, out), or does not fit 4 bits."""
    check_rank(self.rank, path, shape)
    frozen_factors.check(self.quantize, path, shape, self.rank)

  def init(self, key, w):
    """The initial leaves.

    Returns:
      frozen: w [in, out], u [in, r], which is U S, and vt [r, out]; in 4 bits, a mark
        [2, r].
      theta: r [r, r].
    """
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
    """r, the rank of W' - W."""
    return self.rank

  def lora(self, frozen, theta):
    """(a [in, r], b [r, out]) with W' = W + a b, where a is c U S R."""
    a = float32(frozen["u"]) @ (self.alpha / self.rank * theta["r"])
    return a, float32(frozen["vt"])
