"""VeRA: W' = W + A diag(d) B diag(e), A and B random and frozen [2310.11454].

All weights use corners of one pair of random matrices, which `seed` determines. The
defaults are those of Hugging Face PEFT.
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
  """Trains scale vectors around frozen random matrices.

  Attributes:
    rank: columns of A; may exceed those of the weight.
    d_initial: start of d; e starts at zero.
    seed: of A and B. Each weight holds its own corner of them, in its dtype.
  """

  rank: int = 256
  d_initial: float = 0.1
  seed: int = 0
  dims: ClassVar = dict(w="io", a="ir", b="ro", d="r", e="o")

  def check(self, path, shape):
    """Refuses a rank below 1."""
    if self.rank < 1:
      raise InputError(f"rank {self.rank} of VeRA is below 1")

  def init(self, key, w):
    """frozen w, a, b; theta d [r], e [out] zero."""
    del key  # a and b are the same corners of the same matrices everywhere
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
    """Of W' - W."""
    return self.rank

  def lora(self, frozen, theta):
    """(a, b) with W' = W + a b."""
    return float32(frozen["a"]) * theta["d"], float32(frozen["b"]) * theta["e"]

  def owns(self, frozen) -> bool:
    """Whether a and b are those of `seed`."""
    a, b = frozen["a"], frozen["b"]
    own = random_pair(self.seed, self.rank, a.shape[-2], b.shape[-1])
    pairs = zip(own, (a, b), strict=True)
    return all(jnp.allclose(x.astype(y.dtype), y, atol=1e-2) for x, y in pairs)


def random_pair(seed: int, rank: int, rows: int, cols: int):
  """(a [rows, rank], b [rank, cols]): the corners of two endless uniform matrices.

  Kaiming-uniform bounds as in Hugging Face PEFT: sqrt(6 / rows), sqrt(6 / rank).
  """
  key_a, key_b = jax.random.split(jax.random.key(seed))

  def lines(key, count):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
    return jax.vmap(lambda k: jax.random.uniform(k, (rank,), minval=-1.0))(keys)

  a = math.sqrt(6 / rows) * lines(key_a, rows)
  return a, math.sqrt(6 / rank) * lines(key_b, cols).T
