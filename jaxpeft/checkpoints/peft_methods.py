"""Converts each method to and from PEFT's tensors: LoRA, DoRA, VeRA and (IA)3.

A writer takes ({path: (adapted node, modules)}, {path: (base weight, modules)}, rank)
and returns (config, {module.leaf: array}, {path: relative error}). A reader takes
(config, tensors, modules of a leaf, the leaf, directory) and returns (adapter, {name:
array}). Their matrices are [out, in], ours are [in, out].
"""

import collections
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft import adapters
from jaxpeft.adapters import to_lora
from jaxpeft.errors import InputError

SHARED = "/"  # prefix of tensors that belong to no module of the model

# ---- LoRA and DoRA ----------------------------------------------------------------


def write_lora(nodes, bases, rank):
  """Writes any method as LoRA, or as DoRA if every adapter is DoRA.

  Methods that are LoRA after their initialization keep their factors; the others, and
  all if `rank` is given, are converted by `to_lora.low_rank`.
  """
  tensors, errors, sizes = {}, {}, {}
  types = {type(node.adapter) for node, _ in nodes.values()}
  native = _AS_LORA | (types if types == {adapters.DoRA} else set())
  native = native if rank is None else set()
  dora = types == {adapters.DoRA} and rank is None
  for path, (node, names) in nodes.items():
    errors[path] = 0.0
    for i, name in enumerate(names):
      layer = _layer(path, node, i)
      if type(node.adapter) in native:
        a, b = layer.theta["a"], layer.theta["b"]
        alpha = node.adapter.scale * node.adapter.rank
      else:
        weight = bases.get(path)
        weight = None if weight is None else _layer(path, weight[0], i)
        a, b, error = to_lora.low_rank(path, layer, weight, rank)
        errors[path] = max(errors[path], error)
        alpha = a.shape[1]
      tensors[f"{name}.lora_A.weight"] = np.asarray(a).T
      tensors[f"{name}.lora_B.weight"] = np.asarray(b).T
      if dora:
        tensors[f"{name}.lora_magnitude_vector"] = np.asarray(layer.theta["m"])
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


def _read_lora(config, tensors, names, leaf, directory):
  method = adapters.DoRA if config.get("use_dora") else adapters.LoRA
  start = config.get("init_lora_weights", True)
  # On loading, PEFT computes these initial factors again and subtracts them from the
  # base; so do our methods.
  method = {"pissa": adapters.PiSSA, "olora": adapters.OLoRA}.get(start, method)
  if not (
    isinstance(start, bool) or start in ("gaussian", "orthogonal", "pissa", "olora")
  ):
    raise InputError(
      f"{directory}: init_lora_weights {start!r} changes the base in a way that cannot "
      "be reproduced; convert the adapter to plain LoRA in PEFT first"
    )
  layers, shapes = [], set()
  for name in names:
    r = _pattern(config.get("rank_pattern"), name, config["r"])
    alpha = _pattern(config.get("alpha_pattern"), name, config["lora_alpha"])
    shapes.add((int(r), float(alpha)))
    own = dict(a=tensors.pop(f"{name}.lora_A.weight").T)
    own |= dict(b=tensors.pop(f"{name}.lora_B.weight").T)
    if method is adapters.DoRA:
      own |= dict(m=tensors.pop(f"{name}.lora_magnitude_vector"))
    layers.append(own)
  if len(shapes) > 1:
    raise InputError(
      f"{directory}: the layers that are stacked with {names[0]} have several ranks "
      f"and alphas {sorted(shapes)}; load the model with `groups` (model.groups) that "
      "separate them"
    )
  r, alpha = shapes.pop()
  rslora = bool(config.get("use_rslora"))
  return method(rank=r, alpha=alpha, rslora=rslora), _stack(layers, leaf)


# ---- VeRA and (IA)3 ---------------------------------------------------------------


def _write_vera(nodes, bases, rank):
  if rank is not None or len({n.adapter for n, _ in nodes.values()}) > 1:
    return write_lora(nodes, bases, rank)
  first = [_layer(path, node, 0).frozen for path, (node, _) in nodes.items()]
  a = max((np.asarray(f["a"], np.float32) for f in first), key=len)
  b = max((np.asarray(f["b"], np.float32) for f in first), key=lambda x: x.shape[1])
  tensors = {SHARED + "vera_A": a.T, SHARED + "vera_B": b.T}
  for path, (node, names) in nodes.items():
    for i, name in enumerate(names):
      layer = _layer(path, node, i)
      own = np.asarray(layer.frozen["a"], np.float32)
      corner = a[: len(own)]
      # Our bound depends on the module's own width, theirs on the widest module's.
      ratio = np.vdot(corner, own) / np.vdot(corner, corner)
      if not np.allclose(own, ratio * corner, atol=1e-2 * np.abs(own).max()):
        raise InputError(
          f"the random matrices of {path} come from another seed; give a rank"
        )
      tensors[f"{name}.vera_lambda_d"] = ratio * np.asarray(layer.theta["d"])
      tensors[f"{name}.vera_lambda_b"] = np.asarray(layer.theta["e"])
  adapter = next(iter(nodes.values()))[0].adapter
  config: dict[str, Any] = dict(
    peft_type="VERA",
    bias="none",
    r=adapter.rank,
    projection_prng_key=adapter.seed,
    save_projection=True,
    d_initial=adapter.d_initial,
    vera_dropout=0.0,
    init_weights=True,
  )
  return config, tensors, dict.fromkeys(nodes, 0.0)


def _read_vera(config, tensors, names, leaf, directory):
  a, b = tensors.shared("base_model.vera_A"), tensors.shared("base_model.vera_B")
  rows, cols = leaf.shape[-2:]
  layers = [
    dict(
      a=a[:, :rows].T,
      b=b[:cols].T,
      d=tensors.pop(f"{name}.vera_lambda_d"),
      e=tensors.pop(f"{name}.vera_lambda_b"),
    )
    for name in names
  ]
  adapter = adapters.VeRA(rank=config["r"], seed=config.get("projection_prng_key", 0))
  return adapter, _stack(layers, leaf)


def _write_ia3(nodes, bases, rank):
  if rank is not None:
    return write_lora(nodes, bases, rank)
  tensors, into = {}, []
  for path, (node, names) in nodes.items():
    for i, name in enumerate(names):
      layer = _layer(path, node, i)
      own = np.asarray(next(iter(layer.theta.values())))
      out = "out" in layer.theta
      tensors[f"{name}.ia3_l"] = own[:, None] if out else own[None]
      into += [] if out else [name]
  config: dict[str, Any] = dict(
    peft_type="IA3", feedforward_modules=into, init_ia3_weights=True
  )
  return config, tensors, dict.fromkeys(nodes, 0.0)


def _read_ia3(config, tensors, names, leaf, directory):
  found = [tensors.pop(f"{name}.ia3_l") for name in names]
  on = "input" if found[0].shape[0] == 1 else "output"
  layers = [{"into" if on == "input" else "out": x.reshape(-1)} for x in found]
  return adapters.IA3(on=on), _stack(layers, leaf)


_AS_LORA = {adapters.LoRA, adapters.LoRAOne, adapters.NoRA}
WRITERS = {"VeRA": _write_vera, "IA3": _write_ia3}
READERS = {"LORA": _read_lora, "VERA": _read_vera, "IA3": _read_ia3}


def _layer(path: str, node, i: int):
  """Layer i of a stacked node or array; a leaf that is not stacked, itself."""
  return jax.tree.map(lambda x: x[i], node) if adapters.is_stacked(path) else node


def _stack(layers: list[dict], leaf) -> dict:
  """The layers' leaves stacked, or those of the only layer if `leaf` is no stack."""
  if leaf.ndim == 2:
    return {k: jnp.asarray(x) for k, x in layers[0].items()}
  return {k: jnp.stack([jnp.asarray(layer[k]) for layer in layers]) for k in layers[0]}


def _pattern(patterns, name: str, default):
  """The value of the first pattern that matches a module, by PEFT's rule."""
  for key, value in (patterns or {}).items():
    if re.fullmatch(rf"(.*\.)?({key})", name):
      return value
  return default
