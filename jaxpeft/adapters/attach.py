"""Several named adapters on one base; each row of a batch uses one of them, or none.

All adapters share the base's arrays. Selecting adapters, or replacing one with another
of the same shapes, changes only the values of arrays, so nothing has to be compiled
again.
Axes: B rows of a batch, n entries of a bank (the adapters and the bare base), L layers
of a stack.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxpeft import tree
from jaxpeft.adapters.base import Adapted, is_adapted
from jaxpeft.errors import InputError, unknown
from jaxpeft.linear import is_node


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Attached:
  """A weight node that holds several adapters with the same method and shapes.

  Attributes:
    frozen: {name: leaf}, shared by all adapters; includes the base's weight "w".
    bank: {name: array} with the thetas of all adapters, stacked to [n, ...], or to
      [L, n, ...] for a stack of layers. Entry 0 is a theta that changes nothing, for
      the bare base.
    which: int32[B], each row's index into the bank, or int32[1], one index for all
      rows; for a stack of layers, with a leading axis L.
    adapter: the method with its hyperparameters; static under `jax.jit`.
    names: the adapters' names, in the order of the bank from entry 1 on; static.
  """

  frozen: dict[str, Any]
  bank: dict[str, Any]
  which: jax.Array
  adapter: Any = dataclasses.field(metadata=dict(static=True))
  names: tuple[str, ...] = dataclasses.field(metadata=dict(static=True))

  @property
  def dims(self):
    """{leaf: axes}, without the axes L, n; the docstring of `base` has the letters."""
    return self.adapter.dims

  def matmul(self, x):
    """The product of x [B, ..., in] with each row's own weight, [B, ..., out]."""
    rows = jnp.broadcast_to(self.which, x.shape[:1])
    if self.which.shape == (1,):
      theta = {name: leaf[self.which[0]] for name, leaf in self.bank.items()}
      return self.adapter.apply(x, self.frozen, theta)
    theta = {name: leaf[rows] for name, leaf in self.bank.items()}
    return jax.vmap(lambda x, t: self.adapter.apply(x, self.frozen, t))(x, theta)

  def dense(self):
    """Raises InputError, because rows may use different adapters and thus weights."""
    raise InputError("a weight with several adapters has no merged form; detach first")


def is_attached(node) -> bool:
  """True if a node holds attached adapters; can be passed to JAX as `is_leaf`."""
  return isinstance(node, Attached)


def attach(params, name: str, adapted):
  """`params` with one more adapter attached, under a name, and selected for all rows.

  Args:
    params: the base's parameter tree, with or without attached adapters.
    name: the adapter's name. If an adapter with this name is attached, it is replaced.
    adapted: the same base with the adapter, from `adapt` and training or from
      `load_adapter`.
  Raises:
    InputError: the name is empty; the adapter has another base; its method, shapes,
      frozen factors or adapted weights differ from those of the attached adapters; or
      its method does not keep the base's weight.
  """
  found = []
  several = any(is_attached(x) for x in jax.tree.leaves(params, is_leaf=is_node))

  def one(path, node, new):
    if not is_adapted(new):
      if is_attached(node):
        raise InputError(
          f"{name!r} does not adapt {tree.path_name(path)}, but the attached adapters "
          "do; all attached adapters must adapt the same weights"
        )
      return node
    if several and not is_attached(node):
      raise InputError(
        f"{name!r} adapts {tree.path_name(path)}, which the attached adapters do not; "
        "all attached adapters must adapt the same weights"
      )
    found.append(path)
    return _add(tree.path_name(path), node, name, new)

  if not name:
    raise InputError("an adapter needs a name; the name given is empty")
  attached = jax.tree_util.tree_map_with_path(one, params, adapted, is_leaf=is_node)
  if not found:
    raise InputError(f"nothing is adapted in the tree given for {name!r}")
  return select(attached, name)


def detach(params, name: str):
  """`params` without the named adapter, with the bare base selected for all rows.

  Args:
    params: a tree with attached adapters. Without its last one, it is the base's tree.
    name: the name of the adapter to remove.
  Raises:
    InputError: no adapter is attached under this name.
  """

  def one(node):
    if not is_attached(node):
      return node
    i = _index(node, name)
    left = node.names[: i - 1] + node.names[i:]
    if not left:
      return node.frozen["w"]
    axis = node.which.ndim - 1
    keep = jnp.array([k for k in range(len(node.names) + 1) if k != i])
    bank = {k: jnp.take(leaf, keep, axis=axis) for k, leaf in node.bank.items()}
    return dataclasses.replace(
      node, bank=bank, names=left, which=jnp.zeros_like(node.which)
    )

  _check_any(params)
  return jax.tree.map(one, params, is_leaf=is_node)


def select(params, names):
  """`params` with one adapter selected for all rows, or one for each row.

  Args:
    params: a tree with attached adapters.
    names: an adapter's name or None for the bare base, which then applies to all rows,
      or a list of B of these, one for each row of a batch.
  Raises:
    InputError: no adapter is attached, or none under one of the names.
  """
  _check_any(params)
  rows = [names] if names is None or isinstance(names, str) else list(names)

  def one(node):
    if not is_attached(node):
      return node
    which = jnp.array([_index(node, row) for row in rows], jnp.int32)
    which = jnp.broadcast_to(which, (*node.which.shape[:-1], len(rows)))
    return dataclasses.replace(node, which=which)

  return jax.tree.map(one, params, is_leaf=is_node)


def _add(path: str, node, name: str, new: Adapted) -> Attached:
  if "w" not in new.frozen or new.adapter.identity(new.frozen, new.theta) is None:
    raise InputError(
      f"{type(new.adapter).__name__} on {path} does not keep the base's weight, so it "
      "cannot share the base with other adapters; set keep_base=True if the method has "
      "that option, or export the adapter to PEFT's format as LoRA and load the result"
    )
  stacked = tree.is_stacked(path)
  axis = int(stacked)
  if not is_attached(node):
    base = new.adapter.identity(new.frozen, new.theta)
    bank = jax.tree.map(lambda *xs: jnp.stack(xs, axis), base, new.theta)
    which = jnp.zeros((node.shape[0], 1) if stacked else (1,), jnp.int32)
    node_w = {"w": node}
    check_same(path, name, node_w, {"w": new.frozen["w"]})
    return Attached(new.frozen | node_w, bank, which, new.adapter, (name,))
  if dataclasses.replace(new.adapter) != node.adapter:
    raise InputError(
      f"{name!r} is {new.adapter} on {path}, but the attached adapters are "
      f"{node.adapter}; all attached adapters must have the same method and options"
    )
  check_same(path, name, node.frozen, new.frozen)
  if name in node.names:
    i = _index(node, name)
    at = (slice(None),) * axis + (i,)
    bank = {k: leaf.at[at].set(new.theta[k]) for k, leaf in node.bank.items()}
    return dataclasses.replace(node, bank=bank)
  bank = {
    k: jnp.concatenate([leaf, jnp.expand_dims(new.theta[k], axis)], axis)
    for k, leaf in node.bank.items()
  }
  return dataclasses.replace(node, bank=bank, names=(*node.names, name))


def check_same(path: str, name: str, ours: dict, theirs: dict):
  """Checks that `theirs` contains every leaf of `ours`, with the same values.

  Args:
    path: the weight's path, for the error message.
    name: the adapter to which `theirs` belongs, for the error message.
    ours: {name: array or weight node}.
    theirs: {name: array or weight node}.
  Raises:
    InputError: a leaf is missing or differs.
  """
  for leaf in ours:
    a, b = ours[leaf], theirs.get(leaf)
    if a is b:
      continue
    if b is None or a.shape != b.shape or not _equal(a, b):
      raise InputError(
        f"{name} has another {leaf} on {path} than the tree it is combined with: it "
        "belongs to another base, or was adapted with another key; use adapters of the "
        "same base and key"
      )


def _equal(a, b) -> bool:
  """True if two arrays or weight nodes of the same shape have equal values."""
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=False)
  same = jax.tree.structure(a) == jax.tree.structure(b)
  return same and all(bool(jnp.array_equal(x, y)) for x, y in pairs)


def _index(node: Attached, name: str | None) -> int:
  if name is None:
    return 0
  if name not in node.names:
    raise unknown("adapter", name, node.names)
  return 1 + node.names.index(name)


def _check_any(params):
  if not any(is_attached(x) for x in jax.tree.leaves(params, is_leaf=is_node)):
    raise InputError("no adapter is attached to this tree; call `attach` first")
