"""SVFT: W' = U (S + M) Vt with a sparse M [Lingam et al. 2024, arXiv:2405.19597].

U S Vt is the SVD of W. M is n x n, where n is min(in, out) or, if given, the option
`rank`. M is zero except on a fixed sparsity pattern, whose entries are trained. With
d = `off_diagonals` (0 for the pattern "plain"), there are n (2 d + 1) - d (d + 1) of
them.
Axes: i in, o out, k singular vectors, m trained entries of M, b 2 (see
`frozen_factors`).
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
  """Trains a sparse matrix M between the frozen singular vectors of the weight.

  Attributes:
    pattern: which entries of M are trained. "plain" is the diagonal. "banded" is the
      diagonal and d more diagonals on each side of it. "random" is the same number of
      entries as "banded" at random positions. "topk" is the same number of entries
      again: if W is square, those entries (i, j) for which |u_i . v_j| is largest, as
      in the paper; otherwise the largest entries of U or V, whichever is square, as in
      the published code. The paper ranks u_i . v_j without the absolute value, but that
      depends on the arbitrary signs of singular vectors.
    off_diagonals: d, the number of diagonals on each side of the main one. With
      "random" and "topk", it only determines the number of trained entries.
    rank: the number of leading singular triplets that M connects; None means all. The
      rest of W does not change.
    start: the initial M. "zero" is zero, so that W' = W. "reference" is the random
      initialization of the published code; W' then starts about 0.71 away from W in
      Frobenius norm.
    gate: if True, M is multiplied by sigmoid(g), with one trained number g per weight,
      as in the published code.
    replacement: if True, "random" may draw a position more than once, as in the
      published code.
    keep_base: if True, W is kept in addition to the factors, and W' = W + U M Vt. None
      keeps W only if the factors alone would not reproduce it exactly: if they are
      truncated, if W is not in float32, or if W or the factors are in 4 bits.
    quantize: "nf4" stores the factors in 4 bits, which requires W to be kept; "" leaves
      them in W's dtype. See `frozen_factors`.
  """

  decomposes: ClassVar[bool] = True
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
      object.__setattr__(self, "off_diagonals", 0)  # it has only one diagonal

  def check(self, path, shape):
    """Raises InputError if rank, off_diagonals or 4 bits do not fit the weight."""
    check_rank(self.rank, path, shape)
    n = min(shape) if self.rank is None else self.rank
    if self.off_diagonals >= n:
      raise InputError(
        f"SVFT off_diagonals {self.off_diagonals} must be below {n}, the number of "
        f"singular vectors of {path} {list(shape)} that M connects; lower it"
      )
    frozen_factors.check(self.quantize, path, shape, n)

  def entries(self, n: int) -> int:
    """The number of trained entries of M [n, n]."""
    d = self.off_diagonals
    return n * (2 * d + 1) - d * (d + 1)

  def init(self, key, w):
    """The initial leaves.

    Returns:
      frozen: u [in, n] and vt [n, out]; w [in, out] if W is kept, otherwise s [n];
        for "random" and "topk", the positions rows and cols int32[entries]; in 4 bits,
        a mark [2, n].
      theta: m [entries], the trained entries of M; with a gate also g [].
    """
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
      # The published code's gate starts at 1/2. Without a gate, halve M instead.
      std = np.sqrt(2 / m.size) * (1.0 if self.gate else 0.5)
      m = std * jax.random.normal(key_m, m.shape)
    return frozen, dict(m=m) | (dict(g=jnp.zeros(())) if self.gate else {})

  def apply(self, x, frozen, theta):
    """((x U) (S + M)) Vt, or x W + ((x U) M) Vt if the base is kept."""
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
    """The positions (rows, cols), int[entries] each, of theta's m in M.

    This is for the patterns "plain" and "banded", whose positions are not stored. They
    are in column-major order. The published code's M is the transpose of this one, and
    its entries are in row-major order, so both store the entries in the same order.

    Args:
      n: the size of M [n, n].
    """
    d = self.off_diagonals
    cols = np.repeat(np.arange(n), 2 * d + 1)
    rows = cols + np.tile(np.arange(-d, d + 1), n)
    inside = (rows >= 0) & (rows < n)
    return rows[inside], cols[inside]

  def _choose(self, key, u, vt, n: int):
    """The positions (rows, cols), int32[entries] each, of theta's m in M.

    This is for the patterns "random" and "topk".

    Args:
      key: PRNG key for "random".
      u: float32[in, k].
      vt: float32[k, out].
      n: the size of M [n, n].
    """
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
    """The product of h [..., n] with M, [..., n], in h's dtype."""
    m, n = theta["m"], h.shape[-1]
    if "g" in theta:
      m = m * jax.nn.sigmoid(theta["g"])
    m = m.astype(h.dtype)
    if self.off_diagonals == 0 and self.pattern in ("plain", "banded"):
      return h * m
    if self.pattern == "banded":
      return banded_product(h, m, *self.coordinates(n), self.off_diagonals)
    # Multiply by a dense [n, n] matrix, because gathering the columns of h that the
    # entries need would write entries / n copies of h.
    return h @ jnp.zeros((n, n), h.dtype).at[frozen["rows"], frozen["cols"]].add(m)


def banded_product(h, m, rows, cols, d: int):
  """The product of h [..., n] with a band matrix [n, n], without forming that matrix.

  The columns are divided into blocks. For each block, only the rows that the band
  reaches are multiplied, as one small dense matrix. Together these matrices have
  n (block + 2 d) entries instead of n * n, and the hardware's matrix units can be used.

  Args:
    h: float[..., n].
    m: [entries], the entries of the band matrix.
    rows: int[entries], their rows.
    cols: int[entries], their columns, with |row - column| <= d.
    d: the number of diagonals on each side of the main one.
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
