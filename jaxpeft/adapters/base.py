"""The adapter protocol, and the pytree node that puts one in a weight's place.

An adapter is a frozen dataclass of hyperparameters with three pure functions of one
weight w [in, out] (stacked layers are mapped over), and the axes of its leaves:

  init(key, w) -> (frozen, theta)   dicts of arrays; theta is float32 and is trained
  apply(x, frozen, theta) -> y      == x @ merge(frozen, theta), in factors
  merge(frozen, theta) -> w'        float32, the formula of the paper
  dims: {leaf: axes}                letters as in the weight's: i in, o out; others
                                    replicate. The leaves of frozen and theta together

and, where they differ from the defaults of `Adapter`:

  matrix_only                       False if any leaf (a norm, an embedding) will do
  check(path, shape)                raises InputError for a weight that does not fit
  change_rank                       of W' - W, W the base's weight, where it is low
  identity(frozen, theta) -> theta  a theta with which W' = W; by default zeros
  lora(frozen, theta) -> (a, b)     with W' = W + a b, where frozen and theta tell
  keeps_base                        False if frozen["w"] is not the base's weight
  needs_gradient                    init takes the loss's gradient of w, too; zero
                                    where theta is loaded next. `batches` says of how
                                    many batches
  keeps                             leaves of frozen that w and key do not bring back:
                                    an adapter's file holds them beside theta
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxpeft.errors import InputError
from jaxpeft.linear import dense, linear


class Adapter:
  """What adapters have in common unless they say otherwise (module docstring)."""

  dims: ClassVar[dict[str, str]]
  matrix_only: ClassVar[bool] = True
  change_rank: ClassVar[int | None] = None
  keeps_base: ClassVar[bool] = True
  needs_gradient: ClassVar[bool] = False
  keeps: ClassVar[tuple[str, ...]] = ()

  def check(self, path: str, shape: tuple[int, ...]) -> None:
    """Raises InputError where a weight [in, out] of this shape cannot be adapted."""

  def identity(self, frozen, theta):
    """A theta with which W' = W, shaped like `theta`; None where there is none."""
    del frozen
    return jax.tree.map(jnp.zeros_like, theta)

  def lora(self, frozen, theta):
    """(a [in, r], b [r, out]) with W' = W + a b; None where there are none."""
    return None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapted:
  """The weight `adapter.merge(frozen, theta)`, applied in factors."""

  frozen: dict[str, Any]
  theta: dict[str, Any]
  adapter: Any = dataclasses.field(metadata=dict(static=True))

  @property
  def dims(self) -> Mapping[str, str]:
    """Of the leaves; see the module's docstring."""
    return self.adapter.dims

  def matmul(self, x):
    """x [..., in] -> [..., out], in x's dtype."""
    return self.adapter.apply(x, self.frozen, self.theta)

  def dense(self):
    """The merged weight, float32."""
    return self.adapter.merge(self.frozen, self.theta)


def is_adapted(node) -> bool:
  """Whether a tree's node is an adapted weight; for `is_leaf`."""
  return isinstance(node, Adapted)


def check_rank(rank: int | None, path: str, shape: tuple[int, ...]) -> None:
  """Raises InputError unless 1 <= rank <= min(shape); None is the whole rank."""
  if rank is not None and not 1 <= rank <= min(shape):
    raise InputError(
      f"rank {rank} is not between 1 and min(in, out) = {min(shape)} of "
      f"{path} {list(shape)}; change `rank` of the adapter that matches it"
    )


def low_rank(x, a, b):
  """(x @ a) @ b in x's dtype: x [..., in], a [in, r], b [r, out]."""
  return linear(linear(x, a), b)


def float32(w):
  """A frozen weight, dense and in float32, for `merge`."""
  return dense(w).astype("float32")
