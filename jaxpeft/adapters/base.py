"""The contract for adapters, and `Adapted`, the node that replaces an adapted weight.

An adapter is a frozen dataclass whose fields are a method's hyperparameters. It turns
one weight W [in, out] into an adapted weight W' with three pure functions, and it names
the axes of the arrays they use. All of them handle a single weight; callers map them
over stacked layers with `jax.vmap` or a loop. A new method must define:

  init(key, w) -> (frozen, theta)   Two dicts of arrays, called leaves. theta is trained
                                    and must be float32. frozen is never updated; it
                                    usually contains w itself, under the name "w".
  apply(x, frozen, theta) -> y      Maps x [..., in] to y [..., out], which must equal
                                    x @ merge(frozen, theta) up to rounding. Write
                                    `linear(x, leaf)` instead of x @ leaf, because any
                                    frozen leaf may be stored in 4 bits.
  merge(frozen, theta) -> w'        The adapted weight [in, out] in float32, computed
                                    with the paper's formula.
  dims = {leaf: axes}               A class attribute with one letter for each axis of
                                    every leaf. i is the weight's input axis and o its
                                    output axis; a device mesh may split both. Every
                                    other letter is an axis of the adapter's own, which
                                    is never split. "" denotes a scalar.

The base class `Adapter` provides defaults for everything else. Override those that do
not hold for the method:

  matrix_only                       True: the method adapts only matrices. Set it to
                                    False if it can adapt any array, e.g. a norm scale.
  check(path, shape)                Raises InputError for a weight that the method
                                    cannot adapt. By default it accepts all of them.
  change_rank                       An upper bound on the rank of W' - W, or None (the
                                    default) if there is none below full rank.
  has_identity                      True: some theta gives W' = W. Set it to False if
                                    none does.
  identity(frozen, theta) -> theta  A theta for which W' = W. The default is zeros, or
                                    None if `has_identity` is False.
  lora(frozen, theta) -> (a, b)     Factors a [in, r] and b [r, out] with W' = W + a b,
                                    or None (the default).
  keeps_base                        True: frozen["w"], if present, is the base model's
                                    weight W, unchanged. Set it to False if it is not.
  needs_gradient                    False. If True, `init` is called as init(key, w,
                                    gradient), where gradient [in, out] is the loss's
                                    gradient with respect to w, averaged over as many
                                    batches as the method's option `batches` says. It is
                                    zero if theta is to be loaded afterwards.
  decomposes                        False. True: `init` decomposes the weight. Layers
                                    are then initialized on all cores of a CPU at once.
  keeps                             (). The names of frozen leaves that cannot be
                                    recomputed from w and key. A saved adapter contains
                                    these leaves as well as theta; all other frozen
                                    leaves are recomputed when it is loaded.
  was                               {}. {option: an earlier default}, for options whose
                                    default has changed. Runs that were saved without
                                    them keep it.

Leaves of theta must have strong types: write `jnp.zeros(n)` or `jnp.full((), 1.0,
jnp.float32)`, not `jnp.full((), 1.0)`. Otherwise the second training step is compiled
again. To register a method, list it in `METHODS` in `adapters/__init__.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxpeft.errors import InputError
from jaxpeft.linear import dense, linear


class Adapter:
  """The base class of all methods; the module docstring explains its members."""

  dims: ClassVar[dict[str, str]]
  matrix_only: ClassVar[bool] = True
  change_rank: ClassVar[int | None] = None
  has_identity: ClassVar[bool] = True
  keeps_base: ClassVar[bool] = True
  needs_gradient: ClassVar[bool] = False
  decomposes: ClassVar[bool] = False
  keeps: ClassVar[tuple[str, ...]] = ()
  was: ClassVar[Mapping[str, Any]] = {}

  def check(self, path: str, shape: tuple[int, ...]) -> None:
    """Checks that the method can adapt a weight; by default it can.

    Args:
      path: the weight's path, for the error message.
      shape: the weight's shape, [in, out], without the axis of layers.
    Raises:
      InputError: the method or its options do not fit the weight.
    """

  def identity(self, frozen, theta) -> Any:
    """A theta for which W' = W, shaped like `theta`, or None if there is none.

    Args:
      frozen: the frozen leaves.
      theta: the trained leaves; only their shapes and dtypes matter.
    """
    del frozen
    return jax.tree.map(jnp.zeros_like, theta) if self.has_identity else None

  def lora(self, frozen, theta):
    """Factors (a [in, r], b [r, out]) with W' = W + a b, or None if there are none."""
    return None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapted:
  """A weight node that represents the adapted weight `adapter.merge(frozen, theta)`.

  If the node represents a stack of layers, every leaf has a leading axis of layers.

  Attributes:
    frozen: {name: leaf} of the leaves that training does not change.
    theta: {name: array} of the arrays that are trained.
    adapter: the method with its hyperparameters; static under `jax.jit`.
  """

  frozen: dict[str, Any]
  theta: dict[str, Any]
  adapter: Any = dataclasses.field(metadata=dict(static=True))

  @property
  def dims(self) -> Mapping[str, str]:
    """{leaf: axes}, without the axis of layers. The module docstring names them."""
    return self.adapter.dims

  def matmul(self, x):
    """The product of x [..., in] with the adapted weight, [..., out], in x's dtype."""
    return self.adapter.apply(x, self.frozen, self.theta)

  def dense(self):
    """The adapted weight [in, out] as a float32 array."""
    return self.adapter.merge(self.frozen, self.theta)


def is_adapted(node) -> bool:
  """True if a tree's node is an adapted weight; can be passed to JAX as `is_leaf`."""
  return isinstance(node, Adapted)


def check_rank(rank: int | None, path: str, shape: tuple[int, ...]) -> None:
  """Checks that a rank fits a weight; None stands for full rank and always fits.

  Args:
    rank: the rank, or None.
    path: the weight's path, for the error message.
    shape: the weight's shape, [in, out].
  Raises:
    InputError: the rank is not between 1 and min(in, out).
  """
  if rank is not None and not 1 <= rank <= min(shape):
    raise InputError(
      f"rank {rank} is not between 1 and {min(shape)}, which is min(in, out) of "
      f"{path} {list(shape)}; change `rank` of the adapter that matches this weight"
    )


def low_rank(x, a, b):
  """(x @ a) @ b in x's dtype, for x [..., in], a [in, r] and b [r, out]."""
  return linear(linear(x, a), b)


def float32(w):
  """A frozen weight, dense or in 4 bits, as a float32 array; for use in `merge`."""
  return dense(w).astype("float32")
