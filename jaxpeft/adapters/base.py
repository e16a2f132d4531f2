"""The contract of an adapter, and the node that stands in an adapted weight's place.

An adapter is a frozen dataclass of hyperparameters. It has three pure functions of one
weight w [in, out] (mapped over stacked layers), and names the axes of its leaves:

  init(key, w) -> (frozen, theta)   two dicts of arrays; theta is float32 and is trained
  apply(x, frozen, theta) -> y      equals x @ merge(frozen, theta), computed in factors
  merge(frozen, theta) -> w'        the adapted weight in float32: the paper's formula
  dims: {leaf: axes}                a letter per axis of every leaf of frozen and theta:
                                    i is the weight's input, o its output, and any other
                                    letter is an axis of the adapter's own, which meshes
                                    do not split; "" for a scalar

A method overrides these defaults of `Adapter` where it differs:

  matrix_only                       False if it can adapt any leaf, e.g. a norm
  check(path, shape)                raises InputError for a weight that it cannot adapt
  change_rank                       the rank of W' - W (W is the base's weight) if it is
                                    low; otherwise None
  identity(frozen, theta) -> theta  a theta for which W' = W; zeros by default
  lora(frozen, theta) -> (a, b)     factors with W' = W + a b, if they are at hand
  keeps_base                        False if frozen["w"] is not the base's weight
  needs_gradient                    True if init also takes the loss's gradient of w,
                                    averaged over `batches` batches (zeros where theta
                                    is loaded afterwards)
  keeps                             leaves of frozen that cannot be computed again from
                                    w and key; an adapter's file stores them with theta

Theta must be strongly typed (`jnp.zeros(n)`, not `jnp.full((), 1.0)`): a weak type
makes the second step compile again.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxpeft.errors import InputError
from jaxpeft.linear import dense, linear


class Adapter:
  """The defaults of the contract; see the module docstring."""

  dims: ClassVar[dict[str, str]]
  matrix_only: ClassVar[bool] = True
  change_rank: ClassVar[int | None] = None
  keeps_base: ClassVar[bool] = True
  needs_gradient: ClassVar[bool] = False
  keeps: ClassVar[tuple[str, ...]] = ()

  def check(self, path: str, shape: tuple[int, ...]) -> None:
    """Raises InputError if a weight [in, out] of this shape cannot be adapted."""

  def identity(self, frozen, theta):
    """A theta for which W' = W, shaped like `theta`; None if there is none."""
    del frozen
    return jax.tree.map(jnp.zeros_like, theta)

  def lora(self, frozen, theta):
    """(a [in, r], b [r, out]) with W' = W + a b; None if the method has none."""
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
    """The axes of the leaves; see the module docstring."""
    return self.adapter.dims

  def matmul(self, x):
    """x [..., in] -> [..., out], in x's dtype."""
    return self.adapter.apply(x, self.frozen, self.theta)

  def dense(self):
    """The merged weight, float32."""
    return self.adapter.merge(self.frozen, self.theta)


def is_adapted(node) -> bool:
  """Whether a node of a tree is an adapted weight; also for `is_leaf`."""
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
