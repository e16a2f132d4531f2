"""SVFT: W' = U (S + M) Vt with a sparse M [Lingam et al. 2024, arXiv:2405.19597].

U, S, Vt are the weight's own factors; only the entries of M on a fixed pattern are
trained. For n = min(in, out), or the truncated `rank`, and d = `off_diagonals`, each
pattern but "plain" holds n (2 d + 1) - d (d + 1) entries.
Axes: i in, o out, k factors, m entries of M.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft.adapters import frozen_factors, svd
from jaxpeft.adapters.base import Adapter, check_rank, float32
from jaxpeft.errors import InputError, unknown
from jaxpeft.linear import dense, is_node, linear

PATTERNS = ("plain", "banded", "random", "topk")
_BLOCK = 64  # columns per block of the banded product


@dataclasses.dataclass(frozen=True)
class SVFT(Adapter):
  """Trains a sparse matrix between a weight's singular vectors.

  Attributes:
    pattern: "plain" (diagonal), "banded", "random", or "topk" (the pairs with the
      largest |u_i . v_j|, as the paper has it, for square weights; for others the
      largest entries of the square one of U and V, which is what the published code
      ranks. The paper's sign is not used: it depends on the SVD's arbitrary signs).
    off_diagonals: d; diagonals of the band on each side, or for the other patterns
      the band whose number of entries they have.
    rank: leading factors to use; None is all. The rest of W stays as it is.
    start: "zero", exactly W; or "reference", the published code's random start, about
      0.71 in Frobenius norm from W.
    gate: multiply M by sigmoid(g) with one trained g per weight, as that code does.
    replacement: the random pattern may draw a position twice, as that code does.
    keep_base: keep W beside the factors and add only M's part. None: only where the
      factors alone would change W, that is truncated, not in float32, or in 4 bits.
    quantize: "nf4" holds the factors in 4 bits, beside the base; see `factors`.
  """

  pattern: str = "banded"
  off_diagonals: int = 2
  rank: int | None = None
  start: str = "zero"
  gate: bool = False
  replacement: bool = False
  keep_base: bool | None = None
  quantize: str = ""
  dims: ClassVar = dict(w="io", u="ik", s="k", vt="ko", rows="m", cols="m", m="m", g="",
                        mark="bk")  # fmt: skip

  def __post_init__(self):
    frozen_factors.check_options("SVFT", self.quantize, self.keep_base)
    if self.pattern not in PATTERNS:
      raise unknown("SVFT pattern", self.pattern, PATTERNS)
    if self.start not in ("zero", "reference"):
      raise unknown("SVFT start", self.start, ("zero", "reference"))
    if self.off_diagonals < 0:
      raise InputError(f"SVFT off_diagonals {self.off_diagonals} is negative")
    if self.pattern == "plain" and self.off_diagonals:
      object.__setattr__(self, "off_diagonals", 0)  # the diagonal has none

  def check(self, path, shape):
    """Refuses a rank or a band that the weight is too small for."""
    check_rank(self.rank, path, shape)
    n = min(shape) if self.rank is None else self.rank
    if self.off_diagonals >= n:
      raise InputError(
        f"off_diagonals {self.off_diagonals} must be below {n}, the number of "
        f"singular directions of {path} {list(shape)}; lower it"
      )
    frozen_factors.check(self.quantize, path, shape, n)

  def entries(self, n: int) -> int:
    """Trained entries of M [n, n]."""
    d = self.off_diagonals
    return n * (2 * d + 1) - d * (d + 1)

  def init(self, key, w):
    """frozen factors (and w, see keep_base), theta m [entries]."""
    n = min(w.shape) if self.rank is None else self.rank
    u, s, vt = svd.svd(dense(w))
    exact = n == min(w.shape) and w.dtype == jnp.float32 and not is_node(w)
    exact = exact and not self.quantize
    keep = not exact if self.keep_base is None else self.keep_base
    frozen = frozen_factors.freeze(u[:, :n], vt[:n], w.dtype, self.quantize)
    frozen |= dict(w=w) if keep else dict(s=s[:n])
    key_pattern, key_m = jax.random.split(key)
    if self.pattern in ("random", "topk"):
      frozen["rows"], frozen["cols"] = self._choose(key_pattern, u, vt, n)
    m = jnp.zeros(self.entries(n))
    if self.start == "reference":
      # The code's gate starts at 1/2; without a gate, start where it would.
      std = np.sqrt(2 / m.size) * (1.0 if self.gate else 0.5)
      m = std * jax.random.normal(key_m, m.shape)
    return frozen, dict(m=m) | (dict(g=jnp.zeros(())) if self.gate else {})

  def apply(self, x, frozen, theta):
    """((x U) (S + M)) Vt, or x W + ((x U) M) Vt where the base is kept."""
    h = linear(x, frozen["u"])
    mixed = self._mix(h, frozen, theta)
    if "w" in frozen:
      return linear(x, frozen["w"]) + linear(mixed, frozen["vt"])
    return linear(h * frozen["s"].astype(h.dtype) + mixed, frozen["vt"])

  def merge(self, frozen, theta):
    """U (S + M) Vt, or W + U M Vt."""
    u, vt = float32(frozen["u"]), float32(frozen["vt"])
    mixed = self._mix(u, frozen, theta)
    if "w" in frozen:
      return float32(frozen["w"]) + mixed @ vt
    return (u * frozen["s"] + mixed) @ vt

  def coordinates(self, n: int):
    """(rows, cols) of theta's entries in M [n, n] for "plain" and "banded".

    Row-major in the published code's matrix, which multiplies from the other side:
    column after column in ours.
    """
    d = self.off_diagonals
    cols = np.repeat(np.arange(n), 2 * d + 1)
    rows = cols + np.tile(np.arange(-d, d + 1), n)
    inside = (rows >= 0) & (rows < n)
    return rows[inside], cols[inside]

  def _choose(self, key, u, vt, n: int):
    """(rows, cols) int32[entries] of the random and the topk pattern."""
    count = self.entries(n)
    if self.pattern == "random" and self.replacement:
      rows, cols = jax.random.randint(key, (2, count), 0, n)
      return rows, cols
    if self.pattern == "random":
      score = jax.random.uniform(key, (n, n))
    elif u.shape[0] == vt.shape[1]:
      score = jnp.abs(u[:, :n].T @ vt[:n].T)
    else:
      score = jnp.abs((u if u.shape[0] == u.shape[1] else vt)[:n, :n])
    flat = jnp.sort(jax.lax.top_k(score.reshape(-1), count)[1]).astype(jnp.int32)
    return flat // n, flat % n

  def _mix(self, h, frozen, theta):
    """h [..., n] times M, in h's dtype."""
    m, n = theta["m"], h.shape[-1]
    if "g" in theta:
      m = m * jax.nn.sigmoid(theta["g"])
    m = m.astype(h.dtype)
    if self.off_diagonals == 0 and self.pattern in ("plain", "banded"):
      return h * m
    if self.pattern == "banded":
      return banded_product(h, m, *self.coordinates(n), self.off_diagonals)
    # A dense [n, n] product: gathering columns would write entries / n times h.
    return h @ jnp.zeros((n, n), h.dtype).at[frozen["rows"], frozen["cols"]].add(m)


def banded_product(h, m, rows, cols, d: int):
  """h [..., n] times the band with entries m at (rows, cols), |row - col| <= d.

  One dense product per block of columns with the rows it can reach: matrix units do
  the work, on n (block + 2 d) entries instead of n * n.
  """
  n = h.shape[-1]
  block = min(_BLOCK, n)
  blocks = -(-n // block)
  band = jnp.zeros((blocks, block + 2 * d, block), h.dtype)
  g = cols // block
  band = band.at[g, rows - g * block + d, cols % block].set(m, unique_indices=True)
  padded = jnp.pad(h, [(0, 0)] * (h.ndim - 1) + [(d, d + blocks * block - n)])
  reach = block + 2 * d
  parts = [padded[..., i * block : i * block + reach] for i in range(blocks)]
  out = jnp.einsum("...gr,grc->...gc", jnp.stack(parts, -2), band)
  return out.reshape(*h.shape[:-1], -1)[..., :n]
