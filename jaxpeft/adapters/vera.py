"""VeRA: W' = W + A diag(d) B diag(e) [Kopiczko et al. 2023, arXiv:2310.11454].

A and B are random and frozen; d and e are trained. The A and B of every weight are the
upper left corners of the same pair of large random matrices, which `seed` determines.
The defaults are those of Hugging Face PEFT.
Axes: i in, o out, r rank.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxpeft.adapters.base import Adapter, float32
from jaxpeft.errors import InputError
from jaxpeft.linear import linear


@dataclasses.dataclass(frozen=True)
class VeRA(Adapter):
  """Trains two scale vectors around frozen random low-rank factors.

  Attributes:
    rank: r, the number of columns of A and of rows of B; it may exceed min(in, out).
    d_initial: the initial value of d's entries; e starts at zero, so that W' = W.
    seed: the seed of the random matrices. Each weight stores its own copies of A and B,
      in its dtype.
  """

  rank: int = 256
  d_initial: float = 0.1
  seed: int = 0
  dims: ClassVar = dict(w="io", a="ir", b="ro", d="r", e="o")

  def check(self, path, shape):
    """Raises InputError if the rank is below 1."""
    if self.rank < 1:
      raise InputError(
        f"rank {self.rank} of VeRA on {path} is below 1; raise its option `rank`"
      )

  def init(self, key, w):
    """Frozen leaves w, a [in, r], b [r, out]; trained leaves d [r], e [out] (zero)."""
    del key  # all weights use the same random matrices
    a, b = random_pair(self.seed, self.rank, *w.shape)
    d = jnp.full(self.rank, self.d_initial, jnp.float32)
    return dict(w=w, a=a.astype(w.dtype), b=b.astype(w.dtype)), dict(
      d=d, e=jnp.zeros(w.shape[1])
    )

  def apply(self, x, frozen, theta):
    """x W + (((x A) d) B) e."""
    h = linear(x, frozen["a"]) * theta["d"].astype(x.dtype)
    return linear(x, frozen["w"]) + linear(h, frozen["b"]) * theta["e"].astype(x.dtype)

  def merge(self, frozen, theta):
    """W + A diag(d) B diag(e)."""
    a, b = self.lora(frozen, theta)
    return float32(frozen["w"]) + a @ b

  @property
  def change_rank(self) -> int:
    """r, the highest rank of W' - W."""
    return self.rank

  def lora(self, frozen, theta):
    """(a [in, r], b [r, out]) with W' = W + a b, namely A diag(d) and B diag(e)."""
    return float32(frozen["a"]) * theta["d"], float32(frozen["b"]) * theta["e"]

  def owns(self, frozen) -> bool:
    """True if a and b in `frozen` are the matrices that `seed` determines."""
    a, b = frozen["a"], frozen["b"]
    own = random_pair(self.seed, self.rank, a.shape[-2], b.shape[-1])
    pairs = zip(own, (a, b), strict=True)
    return all(jnp.allclose(x.astype(y.dtype), y, atol=1e-2) for x, y in pairs)


def random_pair(seed: int, rank: int, rows: int, cols: int):
  """(a [rows, rank], b [rank, cols]), VeRA's random matrices for one weight.

  Apart from their scales, they are the upper left corners of two random matrices
  without bounds on rows and columns, so weights of different shapes share entries. As
  in Hugging Face PEFT, entries are uniform within Kaiming's bounds: a within
  [-sqrt(6 / rows), sqrt(6 / rows)], and b within [-sqrt(6 / rank), sqrt(6 / rank)].

  Args:
    seed: the seed of the random matrices.
    rank: the number of columns of a and of rows of b.
    rows: the number of rows of a.
    cols: the number of columns of b.
  """
  key_a, key_b = jax.random.split(jax.random.key(seed))

  def lines(key, count):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
    return jax.vmap(lambda k: jax.random.uniform(k, (rank,), minval=-1.0))(keys)

  a = math.sqrt(6 / rows) * lines(key_a, rows)
  return a, math.sqrt(6 / rank) * lines(key_b, cols).T
