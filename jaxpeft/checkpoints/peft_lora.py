"""LoRA and DoRA in PEFT's format, also where the layers of a stack differ.

PEFT adapts every module on its own: layers may have several ranks r and scales c, or no
adapter. A stack of ours has one rank and one scale. So a stack gets the largest rank;
the factors of the other layers are padded with zeros, and b is multiplied by the ratio
of the scales. A layer without adapter gets a = 0 and b = 0. All of this is exact. It
holds in training, too: the gradient of a padded column of a is zero because the row of
b is zero, and the other way round. Only DoRA's magnitudes m are trained in every layer
of the stack. In the other direction, `used` finds the ranks without padding.
Matrices of PEFT are [out, in], ours are [in, out].
Axes: r rank, R largest rank of a stack.
"""

import collections
import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft import adapters
from jaxpeft.adapters import to_lora
from jaxpeft.checkpoints import peft_config, peft_names
from jaxpeft.checkpoints.peft_config import CONFIG
from jaxpeft.checkpoints.peft_names import Part
from jaxpeft.checkpoints.peft_tensors import Tensors
from jaxpeft.errors import InputError

# Values of init_lora_weights for which PEFT leaves the base as it is. For "pissa" and
# "olora" it computes the initial factors again when it loads an adapter, and subtracts
# them from the base; so do our methods. "corda" and "lora_ga" need data for that,
# "pissa_niter_4" needs a random generator, and "loftq" rounds the base.
_PLAIN = ("true", "false", "none", "gaussian", "orthogonal", "eva", "mica")
_RESIDUAL = {"pissa": adapters.PiSSA, "olora": adapters.OLoRA}
AS_LORA = {adapters.LoRA, adapters.LoRAOne, adapters.NoRA}
_PADDED = {adapters.LoRA, adapters.DoRA}  # what `read` makes of padded layers


class _Layer(NamedTuple):
  """The factors of one module: its update is alpha / r a b, or with sqrt(r)."""

  a: Any  # float32[in, r]
  b: Any  # float32[r, out]
  alpha: float
  rslora: bool
  m: Any = None  # float32[out], the magnitudes of DoRA

  @property
  def rank(self) -> int:
    return self.a.shape[1]

  @property
  def scale(self) -> float:
    return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def read(config: dict, tensors: Tensors, path: str, part: Part):
  """(adapter, {name: [array or None for each layer]}) of the leaf at a path.

  None stands for the value with which the adapter changes nothing.

  Args:
    config: the options.
    tensors: of the file.
    path: of the leaf.
    part: the leaf and its modules.
  Raises:
    InputError: the way in which the training started cannot be reproduced, or a tensor
      does not fit.
  """
  method = adapters.DoRA if config.get("use_dora") else adapters.LoRA
  start = str(config.get("init_lora_weights", True)).lower()
  method = _RESIDUAL.get(start, method)
  if start not in (*_PLAIN, *_RESIDUAL) or (tensors.fused and start in _RESIDUAL):
    raise InputError(
      f"{tensors.directory}: init_lora_weights {start!r} changes the base in a way "
      "that cannot be reproduced; convert the adapter to plain LoRA in PEFT first"
    )
  mixed = config.get("use_dora") and method is not adapters.DoRA
  if mixed or (path == "embed" and method is not adapters.LoRA):
    options = "use_dora with" if mixed else f"{method.__name__}, i.e. use_dora or"
    raise InputError(
      f"{tensors.directory}: {options} init_lora_weights {start!r} is not supported on "
      f"{part.modules[0]}; merge the adapter in PEFT (merge_and_unload)"
    )
  found = [
    _read_layer(config, tensors, path, part, module)
    if module in tensors.adapted
    else None
    for module in part.modules
  ]
  layers = [layer for layer in found if layer]
  shapes = {(layer.rank, layer.alpha) for layer in layers}
  small = max(rank for rank, _ in shapes) <= min(part.leaf.shape[-2:])
  if len(shapes) > 1 or None in found or not small:
    return _pad(method, path, part, found)
  adapter = _like(method, layers[0])
  return adapter, _leaves(layers)


def _read_layer(config, tensors, path, part, module) -> _Layer:
  name = peft_config.name_in(tensors, module)
  r = peft_config.pattern(config.get("rank_pattern"), name, config["r"])
  alpha = peft_config.pattern(config.get("alpha_pattern"), name, config["lora_alpha"])
  valid = type(r) is int and type(alpha) in (int, float) and 0 < alpha < math.inf
  if not valid or r < 1:
    raise InputError(
      f"{tensors.directory / CONFIG} is damaged: rank {r!r} and alpha {alpha!r} of "
      f"{module} must be positive numbers"
    )
  rows, cols = part.leaf.shape[-2:]
  a, b = ("lora_A.weight", "lora_B.weight")
  if path == "embed":
    a, b = ("lora_embedding_A", "lora_embedding_B")
  return _Layer(
    tensors.pop(f"{module}.{a}", (r, rows)).T,
    tensors.pop(f"{module}.{b}", (cols, r)).T,
    float(alpha),
    bool(config.get("use_rslora")),
    tensors.pop(f"{module}.lora_magnitude_vector", (cols,))
    if config.get("use_dora")
    else None,
  )


def _pad(method, path: str, part: Part, found: list):
  """(adapter, leaves) of layers that differ in rank or scale; None is no adapter."""
  if method in _RESIDUAL.values():
    found = [
      layer and _as_difference(method, path, part, layer, i)
      for i, layer in enumerate(found)
    ]
    method = adapters.LoRA
  limit = min(part.leaf.shape[-2:])
  found = [_fit(layer, limit) if layer else None for layer in found]
  layers = [layer for layer in found if layer]
  largest = max(layer.rank for layer in layers)
  scales = [(x.alpha, x.rslora) for x in layers if x.rank == largest]
  (alpha, rslora), _ = collections.Counter(scales).most_common(1)[0]
  adapter = method(largest, alpha, rslora)
  return adapter, _leaves([x and _widen(x, largest, adapter.scale) for x in found])


def _like(method, layer: _Layer):
  """The adapter of a layer; PEFT's start "pissa" is the exact decomposition."""
  made = method(layer.rank, layer.alpha, layer.rslora)
  if isinstance(made, adapters.PiSSA):
    return dataclasses.replace(made, iterations=0)
  return made


def _as_difference(method, path, part, layer: _Layer, i: int) -> _Layer:
  """PiSSA or OLoRA, c (a b - a0 b0), as one LoRA of rank 2 r with scale 1."""
  w = (
    jax.tree.map(lambda x: x[i], part.leaf) if adapters.is_stacked(path) else part.leaf
  )
  adapter = _like(method, layer)
  adapter.check_base(w)
  # The factors are rounded to the weight's dtype, as in `Residual.init`.
  a0, b0 = (
    np.asarray(x.astype(w.dtype), np.float32)
    for x in adapter.start(jax.random.key(0), w)
  )
  a = np.concatenate([layer.a, a0], 1)
  b = adapter.scale * np.concatenate([layer.b, -b0], 0)
  return _Layer(a, b, float(a.shape[1]), False)


def _fit(layer: _Layer, limit: int) -> _Layer:
  """The same update with a rank of at most `limit`, which is min(in, out)."""
  if layer.rank <= limit:
    return layer
  update = layer.scale * layer.a @ layer.b
  eye = np.eye(limit, dtype=np.float32)
  a, b = (update, eye) if update.shape[1] == limit else (eye, update)
  return _Layer(a, b, float(limit), False, layer.m)


def _widen(layer: _Layer, rank: int, scale: float) -> _Layer:
  """The same update with this rank and scale."""
  pad = rank - layer.rank
  b = layer.b if layer.scale == scale else np.float32(layer.scale / scale) * layer.b
  a, b = np.pad(layer.a, ((0, 0), (0, pad))), np.pad(b, ((0, pad), (0, 0)))
  return layer._replace(a=a, b=b)


def _leaves(layers: list) -> dict:
  names = ["a", "b", "m"]
  leaves = {n: [layer and getattr(layer, n) for layer in layers] for n in names}
  return {n: xs for n, xs in leaves.items() if any(x is not None for x in xs)}


# ---- writing ----------------------------------------------------------------------


def write(nodes, bases, rank):
  """(config, {module: {leaf: array}}, {path: relative error}) of any method as LoRA.

  It becomes DoRA if every adapter is DoRA. Methods that are LoRA after their
  initialization keep their factors, without padding; the others, and all if `rank` is
  given, are converted by `to_lora.low_rank`.

  Args:
    nodes: {path: (adapted node, modules)}.
    bases: {path: (base weight, modules)}.
    rank: of the nearest LoRA; None is exact.
  """
  tensors, errors, sizes = {}, {}, {}
  types = {type(node.adapter) for node, _ in nodes.values()}
  native = AS_LORA | (types if types == {adapters.DoRA} else set())
  native = native if rank is None else set()
  dora = types == {adapters.DoRA} and rank is None
  for path, (node, names) in nodes.items():
    errors[path] = 0.0
    ranks = used(path, node) if type(node.adapter) in native else [None] * len(names)
    for i, (name, own) in enumerate(zip(names, ranks, strict=True)):
      if own == 0:
        continue
      layer = one_layer(path, node, i)
      if type(node.adapter) in native:
        a, b = layer.theta["a"][:, :own], layer.theta["b"][:own]
        alpha = node.adapter.scale * a.shape[1]
      else:
        weight = bases.get(path)
        weight = None if weight is None else one_layer(path, weight[0], i)
        a, b, error = to_lora.low_rank(path, layer, weight, rank)
        errors[path] = max(errors[path], error)
        alpha = a.shape[1]
      factors = ("lora_A.weight", "lora_B.weight")
      if path == "embed":
        factors = ("lora_embedding_A", "lora_embedding_B")
      tensors[name] = dict(
        zip(factors, (np.asarray(a).T, np.asarray(b).T), strict=True)
      )
      if dora:
        tensors[name]["lora_magnitude_vector"] = np.asarray(layer.theta["m"])
      sizes[name] = (a.shape[1], float(alpha))
  (r, alpha), _ = collections.Counter(sizes.values()).most_common(1)[0]
  config: dict[str, Any] = dict(
    peft_type="LORA",
    bias="none",
    r=r,
    lora_alpha=alpha,
    rank_pattern={n: s[0] for n, s in sizes.items() if s[0] != r},
    alpha_pattern={n: s[1] for n, s in sizes.items() if s[1] != alpha},
    lora_dropout=0.0,
    init_lora_weights=True,
    use_rslora=False,
    use_dora=dora,
  )
  # PEFT combines rsLoRA with no patterns; without it, alpha gives the same scale.
  rslora = types <= native and all(n.adapter.rslora for n, _ in nodes.values())
  if rslora and len(set(sizes.values())) == 1:
    config |= dict(use_rslora=True, lora_alpha=alpha / r**0.5)
  return config, tensors, errors


def used(path: str, node) -> list[int]:
  """The rank of each layer of a LoRA or DoRA without the padding that `read` adds.

  It is 0 for a layer whose adapter changes nothing. Padding leaves one layer with the
  full rank, so if there is none, nothing is taken as padding.

  Args:
    path: of the weight.
    node: an adapted node.
  """
  layers, full = peft_names.depth(path, node.theta["a"]), node.adapter.rank
  if layers == 1 or type(node.adapter) not in _PADDED:
    return [full] * layers
  a, b = jnp.any(node.theta["a"] != 0, 1), jnp.any(node.theta["b"] != 0, 2)
  place = jnp.arange(1, full + 1)
  ranks = [int(n) for n in jnp.max(jnp.where(a | b, place, 0), 1)]
  if "m" in node.theta:  # a trained magnitude alone is an adapter, too
    identity = node.adapter.identity(node.frozen, node.theta)["m"]
    same = jnp.all(jnp.isclose(node.theta["m"], identity, rtol=1e-6), 1)
    ranks = [n if whole else max(n, 1) for n, whole in zip(ranks, same, strict=True)]
  return ranks if full in ranks else [full] * layers


def one_layer(path: str, node, i: int):
  """Layer i of a stacked node or array; a leaf that is not stacked, itself."""
  return jax.tree.map(lambda x: x[i], node) if adapters.is_stacked(path) else node
