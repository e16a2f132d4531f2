"""SVF: W' = U (S z) Vt, with one trained factor per singular value [Sun et al. 2025].

U S Vt is the SVD of W. The paper (Transformer^2, arXiv:2501.06252) trains z by
reinforcement learning, with Adam, learning rate 2e-3, gradients clipped at 1e-3 and
batch size 256. The changes of several adapters of one base add up to an adapter of the
same size: z = z1 + z2 - 1 gives W' = W + (W'_1 - W) + (W'_2 - W).
Axes: i in, o out, k singular values, b 2 (see `frozen_factors`).
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
  """Multiplies each singular value of the weight by a trained factor.

  Attributes:
    reference: if True, z is parameterized as in the published code, which differs from
      the paper: z is sigmoid(p), rescaled so that the sum of the singular values does
      not change. The trained p starts normally distributed, with mean 0.1 and standard
      deviation 0.01.
    keep_base: if True, W is kept in addition to the factors, and
      W' = W + U (S (z - 1)) Vt. None keeps W only if the factors alone would not
      reproduce it exactly: if W is not in float32, or if W or the factors are in 4
      bits.
    quantize: "nf4" stores the factors in 4 bits, which requires W to be kept; "" leaves
      them in W's dtype. See `frozen_factors`.
  """

  decomposes: ClassVar[bool] = True
  reference: bool = False
  keep_base: bool | None = None
  quantize: str = ""
  dims: ClassVar = dict(w="io", u="ik", s="k", vt="ko", mark="bk", z="k", p="k")

  def __post_init__(self):
    frozen_factors.check_options("SVF", self.quantize, self.keep_base)

  def check(self, path, shape):
    """Raises InputError if the factors are in 4 bits but do not divide into blocks."""
    frozen_factors.check(self.quantize, path, shape, min(shape))

  def init(self, key, w):
    """The initial leaves.

    Returns:
      frozen: u [in, k], s [k] and vt [k, out]; w [in, out] if W is kept; in 4 bits, a
        mark [2, k].
      theta: z [k], all ones, or with `reference` p [k].
    """
    u, s, vt = svd.svd(dense(w))
    frozen = dict(s=s) | frozen_factors.freeze(u, vt, w.dtype, self.quantize)
    exact = w.dtype == jnp.float32 and not is_node(w) and not self.quantize
    keep = not exact if self.keep_base is None else self.keep_base
    frozen |= dict(w=w) if keep else {}
    if self.reference:
      return frozen, dict(p=0.1 + 0.01 * jax.random.normal(key, s.shape))
    return frozen, dict(z=jnp.ones_like(s))

  def apply(self, x, frozen, theta):
    """((x U) (S z)) Vt, or x W + ((x U) (S (z - 1))) Vt if the base is kept."""
    scale = self._scale(frozen, theta).astype(x.dtype)
    y = linear(linear(x, frozen["u"]) * scale, frozen["vt"])
    return y + linear(x, frozen["w"]) if "w" in frozen else y

  def merge(self, frozen, theta):
    """U (S z) Vt, or W + U (S (z - 1)) Vt."""
    scale = self._scale(frozen, theta)
    w = (float32(frozen["u"]) * scale) @ float32(frozen["vt"])
    return w + float32(frozen["w"]) if "w" in frozen else w

  def identity(self, frozen, theta):
    """All ones: z = 1 gives W' = W, and so does any constant p."""
    del frozen
    return jax.tree.map(jnp.ones_like, theta)

  def z(self, frozen, theta):
    """z, float32[k], the factor of each singular value."""
    if not self.reference:
      return theta["z"]
    s, z = frozen["s"], jax.nn.sigmoid(theta["p"])
    return z * (s.sum() / (s * z).sum())

  def _scale(self, frozen, theta):
    z = self.z(frozen, theta)
    return frozen["s"] * (z - 1 if "w" in frozen else z)
