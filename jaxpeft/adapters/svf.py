"""SVF: W' = U (S z) Vt, a factor z for each singular value [Sun et al. 2025].

The paper (Transformer^2, arXiv:2501.06252) trains z by reinforcement learning, Adam,
lr 2e-3, gradient clipped at 1e-3, batch 256. Adapters of one base add, with as many
parameters as one: merge(z1 + z2 - 1) is W + dW1 + dW2.
Axes: i in, o out, k factors.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxpeft.adapters import frozen_factors, svd
from jaxpeft.adapters.base import Adapter, float32
from jaxpeft.linear import dense, is_node, linear


@dataclasses.dataclass(frozen=True)
class SVF(Adapter):
  """Scales each singular value of a weight by a trained factor.

  Attributes:
    reference: as the published code has it, not the paper: z = sigmoid(p), rescaled
      so that the sum of the singular values stays, from p = 0.1 with deviation 0.01.
    keep_base: keep W beside the factors and add only what z changes. None: only where
      the factors alone would change W, that is not in float32, or in 4 bits.
    quantize: "nf4" holds the factors in 4 bits, beside the base; see `factors`.
  """

  reference: bool = False
  keep_base: bool | None = None
  quantize: str = ""
  dims: ClassVar = dict(w="io", u="ik", s="k", vt="ko", mark="bk", z="k", p="k")

  def __post_init__(self):
    frozen_factors.check_options("SVF", self.quantize, self.keep_base)

  def check(self, path, shape):
    """Refuses factors in 4 bits that do not divide into blocks."""
    frozen_factors.check(self.quantize, path, shape, min(shape))

  def init(self, key, w):
    """frozen u, s, vt (and w, see keep_base); theta z [k] of ones, or p [k]."""
    u, s, vt = svd.svd(dense(w))
    frozen = dict(s=s) | frozen_factors.freeze(u, vt, w.dtype, self.quantize)
    exact = w.dtype == jnp.float32 and not is_node(w) and not self.quantize
    keep = not exact if self.keep_base is None else self.keep_base
    frozen |= dict(w=w) if keep else {}
    if self.reference:
      return frozen, dict(p=0.1 + 0.01 * jax.random.normal(key, s.shape))
    return frozen, dict(z=jnp.ones_like(s))

  def apply(self, x, frozen, theta):
    """((x U) (S z)) Vt, or x W + ((x U) (S (z - 1))) Vt where the base is kept."""
    scale = self._scale(frozen, theta).astype(x.dtype)
    y = linear(linear(x, frozen["u"]) * scale, frozen["vt"])
    return y + linear(x, frozen["w"]) if "w" in frozen else y

  def merge(self, frozen, theta):
    """U (S z) Vt, or W + U (S (z - 1)) Vt."""
    scale = self._scale(frozen, theta)
    w = (float32(frozen["u"]) * scale) @ float32(frozen["vt"])
    return w + float32(frozen["w"]) if "w" in frozen else w

  def identity(self, frozen, theta):
    """Ones; of p any constant will do."""
    del frozen
    return jax.tree.map(jnp.ones_like, theta)

  def z(self, frozen, theta):
    """float32[k]: the factors of the singular values."""
    if not self.reference:
      return theta["z"]
    s, z = frozen["s"], jax.nn.sigmoid(theta["p"])
    return z * (s.sum() / (s * z).sum())

  def _scale(self, frozen, theta):
    z = self.z(frozen, theta)
    return frozen["s"] * (z - 1 if "w" in frozen else z)
