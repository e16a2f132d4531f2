"""Several named adapters on one base, one of them, or none, for each row of a batch.

The base's arrays are shared, not copied. Choosing among adapters, and replacing one by
another of its shape, changes arrays only: nothing is compiled again.
Axes: B rows, n adapters and the base, L layers of a stack.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxpeft.adapters.base import Adapted, is_adapted
from jaxpeft.errors import InputError, unknown
from jaxpeft.linear import is_node


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Attached:
  """A weight with several adapters of one method and shape."""

  frozen: dict[str, Any]  # what all of them share, the base's weight among it
  bank: dict[str, Any]  # every theta, stacked [n, ...]; the first leaves the base as is
  which: jax.Array  # int32[B], the adapter of each row; [1] is for all rows
  adapter: Any = dataclasses.field(metadata=dict(static=True))
  names: tuple[str, ...] = dataclasses.field(metadata=dict(static=True))

  @property
  def dims(self):
    """Of the last axes of the leaves; see `base`."""
    return self.adapter.dims

  def matmul(self, x):
    """x [B, ..., in] -> [B, ..., out], each row with its adapter."""
    rows = jnp.broadcast_to(self.which, x.shape[:1])
    if self.which.shape == (1,):
      theta = {name: leaf[self.which[0]] for name, leaf in self.bank.items()}
      return self.adapter.apply(x, self.frozen, theta)
    theta = {name: leaf[rows] for name, leaf in self.bank.items()}
    return jax.vmap(lambda x, t: self.adapter.apply(x, self.frozen, t))(x, theta)

  def dense(self):
    """Rows differ, so there is no one weight."""
    raise InputError("a weight with several adapters has no merged form; detach first")


def is_attached(node) -> bool:
  """Whether a tree's node holds several adapters; for `is_leaf`."""
  return isinstance(node, Attached)


def attach(params, name: str, adapted):
  """`params` with the adapters of `adapted` under a name, chosen for all rows.

  Args:
    params: a base, or one with adapters attached.
    name: an adapter of this name is replaced.
    adapted: the same base, adapted (`adapt` and training, or `load_adapter`).
  Raises:
    InputError: adapters of another base, of another method, shape or frozen factors
      than those there, or of methods that change the base itself.
  """
  found = []
  several = any(is_attached(x) for x in jax.tree.leaves(params, is_leaf=is_node))

  def one(path, node, new):
    if not is_adapted(new):
      if is_attached(node):
        raise InputError(f"{name} does not adapt {_key(path)}, as those attached do")
      return node
    if several and not is_attached(node):
      raise InputError(f"{name} adapts {_key(path)}, which those attached do not")
    found.append(path)
    return _add(_key(path), node, name, new)

  if not name:
    raise InputError("an adapter needs a name")
  tree = jax.tree_util.tree_map_with_path(one, params, adapted, is_leaf=is_node)
  if not found:
    raise InputError(f"{name}: nothing is adapted in that tree")
  return select(tree, name)


def detach(params, name: str):
  """`params` without the adapter of that name; the base itself after the last one."""

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
  """`params` with an adapter chosen: a name, None for the base, or one for each row."""
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
      f"{type(new.adapter).__name__} on {path} does not keep the base beside it, so it "
      "cannot share it; export it to PEFT's format and load that (LoRA), or set "
      "keep_base=True where the method has it"
    )
  stacked = path.startswith("layers_")
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
      f"{name} is {new.adapter} on {path}; those attached are {node.adapter}: attach "
      "adapters of one method and shape"
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
  """Raises InputError unless the leaves of `ours` are the same in `theirs`."""
  for leaf in ours:
    a, b = ours[leaf], theirs.get(leaf)
    if a is b:
      continue
    if b is None or a.shape != b.shape or not _equal(a, b):
      raise InputError(
        f"{name} has another {leaf} on {path} than what is there: it is of another "
        "base, or was adapted with another key"
      )


def _equal(a, b) -> bool:
  """Whether two leaves or nodes of one shape hold the same."""
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
    raise InputError("no adapter is attached")


def _key(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")
