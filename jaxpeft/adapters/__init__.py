"""Adapters by name, and the functions that apply them to a parameter tree.

A method is one file, its import here, and its entry in `METHODS`. This room may import
`quantization`, `parallel` and what stands below them; it knows no model and no run.
"""

import dataclasses
import re
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import tqdm

from jaxpeft.adapters.attach import attach, detach, is_attached, select
from jaxpeft.adapters.base import Adapted, Adapter, is_adapted
from jaxpeft.adapters.combine import blend
from jaxpeft.adapters.dora import DoRA
from jaxpeft.adapters.full import Full
from jaxpeft.adapters.ia3 import IA3
from jaxpeft.adapters.initialize import start
from jaxpeft.adapters.loftq import LoftQ
from jaxpeft.adapters.lora import LoRA
from jaxpeft.adapters.lora_ga import LoRAGA
from jaxpeft.adapters.lora_one import LoRAOne
from jaxpeft.adapters.lora_xs import LoRAXS
from jaxpeft.adapters.milora import MiLoRA
from jaxpeft.adapters.nora import NoRA
from jaxpeft.adapters.olora import OLoRA
from jaxpeft.adapters.pissa import PiSSA
from jaxpeft.adapters.svf import SVF
from jaxpeft.adapters.svft import SVFT
from jaxpeft.adapters.vera import VeRA
from jaxpeft.errors import InputError, unknown
from jaxpeft.linear import is_node

METHODS = {
  method.__name__: method
  for method in (
    DoRA,
    Full,
    IA3,
    LoftQ,
    LoRA,
    LoRAGA,
    LoRAOne,
    LoRAXS,
    MiLoRA,
    NoRA,
    OLoRA,
    PiSSA,
    SVF,
    SVFT,
    VeRA,
  )
}

__all__ = [*METHODS, "METHODS", "Adapted", "Adapter", "Count", "adapt", "count"]
__all__ += ["describe", "from_config", "from_description", "is_adapted", "is_stacked"]
__all__ += ["attach", "blend", "detach", "is_attached", "kept", "match", "merge"]
__all__ += ["nodes", "put_kept", "select", "weight_shape"]


class Count(NamedTuple):
  """Sizes of an adapted model."""

  trainable: int  # parameters that are trained
  total: int  # all numbers stored, frozen factors included, index arrays not
  bytes: int  # of what is trained, i.e. of the adapter's file


def from_config(options: Mapping) -> dict[str, Adapter]:
  """{"main": {"name": "LoRA", "match": "...", "rank": 8}} -> {match: LoRA(rank=8)}.

  Raises:
    InputError: for an unknown method or option, or two entries with one `match`.
  """
  rules = {}
  for entry, fields in options.items():
    fields = dict(fields)
    where = f"config.adapt.{entry}"
    if not {"name", "match"} <= fields.keys():
      raise InputError(f"{where} needs `name` (a method) and `match` (a regex)")
    name, pattern = fields.pop("name"), fields.pop("match")
    if name not in METHODS:
      raise unknown(f"method in {where}.name", name, METHODS)
    known = {f.name: f.default for f in dataclasses.fields(METHODS[name])}
    for field, value in fields.items():
      if field not in known:
        raise unknown(f"option of {name} in {where}", field, known)
      default = known[field]
      number = isinstance(default, float) and type(value) is int
      if default is not None and type(value) is not type(default) and not number:
        kind = type(default).__name__
        raise InputError(f"{where}.{field} must be of type {kind}, not {value!r}")
    if pattern in rules:
      raise InputError(f"two entries of config.adapt match {pattern!r}; keep one")
    rules[pattern] = METHODS[name](**fields)
  return rules


def describe(params) -> dict[str, dict]:
  """{path: {"name": method, its options}} of an adapted tree, for JSON."""
  return {
    path: dict(name=type(node.adapter).__name__) | dataclasses.asdict(node.adapter)
    for path, node in nodes(params).items()
    if is_adapted(node)
  }


def from_description(description: Mapping) -> dict[str, Adapter]:
  """The rules for `adapt` that give what `describe` was given."""
  return from_config({p: d | dict(match=re.escape(p)) for p, d in description.items()})


def match(params, rules: Mapping[str, Adapter]) -> dict[str, Adapter]:
  """{path: adapter} of the leaves that the rules (regex of the whole path) name.

  Raises:
    InputError: a rule that matches nothing, two rules on one leaf, a rule on a leaf
      that its adapter cannot take, or on one that is adapted already.
  """
  leaves = nodes(params)
  found: dict[str, tuple[str, Adapter]] = {}
  for pattern, adapter in rules.items():
    try:
      regex = re.compile(pattern)
    except re.error as e:
      raise InputError(f"adapter rule {pattern!r} is no regex: {e}") from e
    paths = [path for path in leaves if regex.fullmatch(path)]
    if not paths:
      shown = ", ".join(sorted(leaves))
      raise InputError(f"adapter rule {pattern!r} matches none of: {shown}")
    for path in paths:
      leaf = leaves[path]
      if path in found:
        raise InputError(
          f"two adapter rules match {path}: {found[path][0]!r} and {pattern!r}; "
          "make them disjoint"
        )
      if is_adapted(leaf):
        raise InputError(f"{path} is adapted already; merge first, or adapt the base")
      shape = leaf.shape[is_stacked(path) :]
      if adapter.matrix_only and len(shape) != 2:
        raise InputError(
          f"{type(adapter).__name__} takes matrices, but rule {pattern!r} matches "
          f"{path} {list(shape)}; narrow the rule, or use Full for it"
        )
      adapter.check(path, shape)
      found[path] = (pattern, adapter)
  return {path: adapter for path, (_, adapter) in found.items()}


def adapt(params, rules: Mapping[str, Adapter], key, gradients=None):
  """`params` with an `Adapted` node in place of every weight that a rule matches.

  Args:
    params: nested dict of arrays; those under "layers_*" have a leading depth axis.
    rules: {regex of the whole path: adapter}; they must be disjoint.
    key: PRNG key; each leaf's own key depends on it and on its path only.
    gradients: {path: gradient of the leaf} for LoRA-GA and LoRA-One, see
      `training.gradients`; {} where their theta is loaded next.
  Raises:
    InputError: see `match`; or gradients are needed and not given.
  """
  found = match(params, rules)
  needy = [path for path, adapter in found.items() if adapter.needs_gradient]
  lacking = [p for p in needy if gradients != {} and p not in (gradients or {})]
  if lacking:
    raise InputError(
      f"{type(found[lacking[0]]).__name__} on {lacking[0]} starts from the loss's "
      "gradient; give adapt(..., gradients=) what jaxpeft.gradients computes"
    )
  leaves = nodes(params)
  layers = sum(leaves[p].shape[0] if is_stacked(p) else 1 for p in found)
  # Only what takes long is shown, and on a terminal: an SVD of a real model.
  with tqdm.tqdm(
    total=layers, desc="adapt", unit="weight", delay=3, leave=False, disable=None
  ) as bar:

    def replace(path, leaf):
      path = jax.tree_util.keystr(path, simple=True, separator="/")
      if path not in found:
        return leaf
      own = jax.random.fold_in(key, zlib.crc32(path.encode()))
      w = (leaf,)
      if path in needy:
        w += (gradients[path] if gradients else jnp.zeros(leaf.shape),)
      return start(found[path], own, w, path, is_stacked(path), bar)

    return jax.tree_util.tree_map_with_path(replace, params, is_leaf=is_node)


def merge(params, dtype=None):
  """Plain arrays again: every `Adapted` node as one weight, merged in float32.

  Args:
    params: an adapted tree.
    dtype: of the merged weights; None is that of each weight's frozen part (float32
      for Full, which has none).
  """

  def one(path, node):
    if is_attached(node):
      raise InputError("several adapters are attached; detach them to merge")
    if not is_adapted(node):
      return node
    to = dtype or next((x.dtype for k, x in node.frozen.items() if k in "wu"), None)
    stacked = is_stacked(jax.tree_util.keystr(path, simple=True, separator="/"))
    return _merge(node, stacked, jnp.dtype(to or jnp.float32))

  return jax.tree_util.tree_map_with_path(one, params, is_leaf=is_node)


def count(params) -> Count:
  """Parameters and bytes; also of abstract trees (`jax.eval_shape`)."""
  nodes = jax.tree.leaves(params, is_leaf=is_node)
  theta = jax.tree.leaves([n.theta for n in nodes if is_adapted(n)])
  is_leaf = lambda x: is_node(x) and not is_adapted(x)  # noqa: E731
  stored = [
    x
    for x in jax.tree.leaves(params, is_leaf=is_leaf)
    if jnp.issubdtype(x.dtype, jnp.floating)
  ]
  return Count(
    trainable=sum(x.size for x in theta),
    total=sum(x.size for x in stored),
    bytes=sum(x.size * x.dtype.itemsize for x in theta),
  )


@jax.jit(static_argnums=(1, 2))
def _merge(node, stacked, dtype):
  dense = jax.vmap(lambda n: n.dense()) if stacked else (lambda n: n.dense())
  return dense(node).astype(dtype)


def kept(params) -> dict:
  """{path: leaf} of the frozen leaves that an adapter's file holds beside theta."""
  return {
    f"{path}/frozen/{name}": node.frozen[name]
    for path, node in nodes(params).items()
    if is_adapted(node)
    for name in node.adapter.keeps
  }


def put_kept(params, leaves: Mapping):
  """`params` with the leaves that `kept` names, where there are such."""

  def put(path, node):
    if not is_adapted(node):
      return node
    path = jax.tree_util.keystr(path, simple=True, separator="/")
    new = {name: leaves[f"{path}/frozen/{name}"] for name in node.adapter.keeps}
    return dataclasses.replace(node, frozen=node.frozen | new)

  return jax.tree_util.tree_map_with_path(put, params, is_leaf=is_node)


def nodes(params) -> dict:
  """{path: leaf or weight node} of a tree."""
  leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_node)
  return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}


def weight_shape(path: str, node: Adapted) -> tuple[int, ...]:
  """Of the weight that an adapted node stands for, without the axis of layers."""
  return jax.eval_shape(lambda n: _merge(n, is_stacked(path), jnp.float32), node).shape[
    is_stacked(path) :
  ]


def is_stacked(path: str) -> bool:
  """Whether the leaf at a path has a leading axis of layers."""
  return path.startswith("layers_")
