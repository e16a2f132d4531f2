"""Saves and loads adapters in the format of Hugging Face's PEFT library.

LoRA, DoRA, VeRA and (IA)3 are saved as PEFT's method of that name. Every other method
is saved as LoRA, exactly where `adapters.to_lora` is exact. `Full` is saved as a copy
of the weight (modules_to_save) if other weights have an adapter of another method.

Other files of this format: `peft_config` (options), `peft_tensors` (names of tensors),
`peft_names` (modules of our leaves), `peft_methods` and `peft_lora` (the methods),
`peft_full` (whole trained tensors).
"""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from jaxpeft import adapters, temporary
from jaxpeft.checkpoints import (
  hf,
  hf_names,
  peft_config,
  peft_full,
  peft_lora,
  peft_methods,
  peft_names,
  peft_tensors,
)
from jaxpeft.checkpoints.peft_config import CONFIG
from jaxpeft.checkpoints.peft_names import EMBED, HEAD
from jaxpeft.checkpoints.peft_tensors import PREFIX, WEIGHTS
from jaxpeft.errors import InputError
from jaxpeft.linear import is_node
from jaxpeft.objectives import head
from jaxpeft.objectives.head import HEAD as SCORE
from jaxpeft.parallel import distributed
from jaxpeft.tree import path_name

# What options of wrong types raise where they are used.
_DAMAGE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_DAMAGE += (re.error, RecursionError)
_COMMON = dict(
  base_model_name_or_path=None,
  task_type="CAUSAL_LM",
  inference_mode=True,
  fan_in_fan_out=False,
  modules_to_save=None,
)


def check_processes():
  """Raises InputError if there are several processes: `save` gathers no arrays."""
  if distributed.count() > 1:
    raise InputError(
      "PEFT's format (--format=peft) is written by one process only; start a single "
      "process, or export merged weights (--format=hf)"
    )


def save(directory, params, base=None, rank: int | None = None, base_name="") -> dict:
  """Writes the adapters of `params` in PEFT's format; returns how exact they are.

  Args:
    directory: created if needed; an adapter in it is replaced.
    params: an adapted tree.
    base: the tree before `adapt`; needed for methods that do not keep its weights.
    rank: of the LoRA that approximates the adapter; needed for methods that PEFT's
      format cannot hold exactly.
    base_name: path or hub id of the base model, under which PEFT will look for it.
  Returns:
    {path: relative error of the update}; 0 where the format is exact.
  Raises:
    InputError: nothing is adapted; PEFT cannot hold an adapted leaf; `base` or `rank`
      is missing; or there are several processes.
  """
  check_processes()
  parts = peft_names.parts(params)
  nodes, full = _split(params, parts, rank)
  if rank is None and all(
    isinstance(n.adapter, adapters.IA3) for n, _ in nodes.values()
  ):
    for path, (node, _) in nodes.items():
      _check_bias(path, node.adapter, parts)
  kinds = {type(node.adapter).__name__ for node, _ in nodes.values()}
  kind = next(iter(kinds)) if len(kinds) == 1 else ""
  write = peft_methods.WRITERS.get(kind, peft_lora.write)
  config, tensors, errors = write(nodes, hf_names.modules(base or {}), rank)
  mine = [module for module in tensors if module]
  every = [m for p, part in parts.items() if _has_matrix(p, part) for m in part.modules]
  config |= dict(target_modules=_targets(mine, every))
  if "feedforward_modules" in config:  # PEFT wants the names that target_modules has
    into = _targets(config["feedforward_modules"], every)
    whole = not set(into) <= set(config["target_modules"])
    config |= dict(target_modules=mine) if whole else dict(feedforward_modules=into)
  tied = peft_names.is_tied(params)
  if EMBED in mine and tied:  # the head has the embedding's factors, transposed
    a, b = (tensors[EMBED][f"lora_embedding_{x}"] for x in "AB")
    tensors[HEAD] = {"lora_A.weight": b.T, "lora_B.weight": a.T}
    config["target_modules"].append(HEAD)
    config |= dict(ensure_weight_tying=True)
  options, copies = peft_full.write(full, parts, mine, tied)
  config |= options
  for module, leaves in copies.items():
    tensors.setdefault(module, {}).update(leaves)
  source, revision = hf.hub_id(base_name) or (base_name or None, None)
  config |= dict(task_type="SEQ_CLS") if SCORE in full else {}
  config = _COMMON | config | dict(base_model_name_or_path=source, revision=revision)
  _write_files(pathlib.Path(directory), config, tensors)
  return errors | dict.fromkeys(full, 0.0)


def _split(params, parts, rank):
  """({path: (adapted node, modules)} of methods, {path: node} of whole weights)."""
  found = {p: x for p, (x, _) in hf_names.modules(params, adapters.is_adapted).items()}
  if not found:
    raise InputError("nothing is adapted: there is no adapter to save")
  whole = {p for p, x in found.items() if isinstance(x.adapter, adapters.Full)}
  if rank is not None or whole == found.keys():  # projections become the nearest LoRA
    whole -= {p for p in whole if p in parts and parts[p].linear and p != SCORE}
  for path in found:
    if path not in parts or not (path in whole or _has_matrix(path, parts[path])):
      raise InputError(
        f"{path} is adapted, but PEFT's format can only adapt projections and copy "
        "other weights; export merged weights instead (--format=hf)"
      )
    method = type(found[path].adapter)
    if path == "embed" and path not in whole and method not in peft_lora.AS_LORA:
      raise InputError(
        f"{path} has {method.__name__}, but PEFT's format holds LoRA and Full for it "
        "only; export merged weights instead (--format=hf)"
      )
  if whole == found.keys():
    raise InputError(
      f"only {', '.join(sorted(whole))} are adapted, but PEFT's format needs an "
      "adapter of a projection; export merged weights instead (--format=hf)"
    )
  nodes = {p: (x, parts[p].modules) for p, x in found.items() if p not in whole}
  return nodes, {p: found[p] for p in found if p in whole}


def _has_matrix(path: str, part) -> bool:
  """Whether PEFT's methods take this leaf: a projection, the head or the embedding."""
  return part.linear or path == "embed"


def _write_files(directory: pathlib.Path, config: dict, tensors: dict):
  directory.mkdir(parents=True, exist_ok=True)
  with temporary.directory(directory, ".save-") as tmp:
    flat = {
      f"{PREFIX}{module}.{leaf}" if module else f"base_model.{leaf}": x
      for module, leaves in tensors.items()
      for leaf, x in leaves.items()
    }
    flat = {key: np.ascontiguousarray(x) for key, x in flat.items()}
    safetensors.numpy.save_file(flat, tmp / WEIGHTS, {"format": "pt"})
    (tmp / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    # First, so that a kill here leaves no mixture of two adapters that can be loaded.
    (directory / CONFIG).unlink(missing_ok=True)
    for name in (WEIGHTS, CONFIG):
      (tmp / name).chmod(0o644)
      (tmp / name).replace(directory / name)


def load(directory, params):
  """An adapted tree: `params` with the PEFT adapter in a directory.

  Layers of one stack may have different ranks, or no adapter: they are padded with
  zeros, see `peft_lora`. Weights that PEFT trained as a whole (modules_to_save, trained
  tokens, biases) become `Full` adapters, see `peft_full`.

  Args:
    directory: with adapter_config.json and adapter_model.safetensors.
    params: of the base model, not adapted.
  Raises:
    InputError: a file is damaged; a method or option is not supported; or the adapter
      has modules, shapes or tensors that do not fit the model.
  """
  directory = pathlib.Path(directory)
  config = peft_config.read(directory)
  kind = config.get("peft_type")
  if kind not in list(peft_methods.READERS):  # a list, because kind may be anything
    raise InputError(
      f"{directory}: peft_type {kind!r} is not one of {sorted(peft_methods.READERS)}"
    )
  tensors = peft_tensors.read(directory)
  done = hf_names.modules(params, adapters.is_adapted)
  if done:
    path = next(iter(done))
    raise InputError(f"{path} is adapted already; load {directory} into the base model")
  if tensors.has(hf_names.SCORE):  # a reward model: its head is not part of the base
    params = head.added(params)
  try:
    fill, full = _read(config, kind, tensors, params)
  except InputError:
    raise
  except _DAMAGE as e:
    raise InputError(f"{directory / CONFIG} is damaged: {e!r}") from e
  tensors.check_empty()
  if not fill and not full:
    raise InputError(f"{directory} adapts no projection of this model")
  rules = {re.escape(path): adapter for path, (adapter, _) in fill.items()}
  adapted = adapters.adapt(params, rules, jax.random.key(0)) if rules else params

  def put(key_path, node):
    path = path_name(key_path)
    if path in fill:
      return _fill(directory, path, node, fill[path][1])
    return peft_full.adapt(path, node, full[path]) if path in full else node

  return jax.tree_util.tree_map_with_path(put, adapted, is_leaf=is_node)


def _read(config, kind: str, tensors, params):
  """({path: (adapter, leaves)} of methods, {path: {layer: array}} of whole weights)."""
  parts = peft_names.parts(params)
  peft_names.split_fused(tensors, parts)
  peft_config.check_tied(config, tensors, params)
  peft_config.check_modules(config, tensors, parts)
  fill = {}
  for path, part in parts.items():
    if not _has_matrix(path, part) or tensors.adapted.isdisjoint(part.modules):
      continue
    _check_copies(tensors, part)
    fill[path] = peft_methods.READERS[kind](config, tensors, path, part)
    _check_bias(path, fill[path][0], parts)
  full = peft_full.read(config, tensors, parts)
  for path in fill.keys() & full.keys():
    raise InputError(
      f"{tensors.directory} has an adapter for some layers of {path} and whole weights "
      "for others; load the model with `groups` (model.groups) that separate them"
    )
  return fill, full


def _fill(directory, path: str, node, leaves: dict):
  """An adapted node with the leaves that were read; see `peft_methods` for None."""
  identity = node.adapter.identity(node.frozen, node.theta) or {}
  new = {}
  for name, own in (node.frozen | node.theta).items():
    if name not in leaves:
      continue
    shape = own.shape[adapters.is_stacked(path) :]
    layers = [
      identity[name][i] if x is None else jnp.asarray(x)
      for i, x in enumerate(leaves[name])
    ]
    for x in layers:
      if x.shape != shape:
        raise InputError(
          f"{directory}: {name} of {path} is {list(x.shape)}; the model needs "
          f"{list(shape)}"
        )
    new[name] = jnp.stack(layers) if adapters.is_stacked(path) else layers[0]
  frozen = {
    k: new[k].astype(x.dtype) if k in new else x for k, x in node.frozen.items()
  }
  theta = {k: new.get(k, x) for k, x in node.theta.items()}
  return adapters.Adapted(frozen, theta, node.adapter)


def _check_bias(path: str, adapter, parts):
  """Refuses (IA)3 on outputs with a bias: PEFT scales the bias, jaxpeft does not."""
  bias = re.sub("/(attn|mlp)/", "/bias/", path)
  if isinstance(adapter, adapters.IA3) and adapter.on == "output" and bias in parts:
    raise InputError(
      f"(IA)3 adapts the output of {path}, which has a bias. PEFT scales the bias too, "
      "so the results would differ; use merged weights instead (--format=hf)"
    )


def _check_copies(tensors, part):
  """Checks and drops the copies of base weights that PEFT saves, e.g. the head's."""
  for module in part.modules:
    copy = f"{module}.base_layer.weight"
    if not tensors.has(copy):
      continue
    x = part.theirs(tensors.pop(copy))
    same = x.shape == part.leaf.shape and np.allclose(x, part.leaf, atol=1e-2)
    if not same:
      raise InputError(f"{tensors.directory} holds another base's weight: {copy}")


def _targets(mine: list[str], every: list[str]) -> list[str]:
  """Names of adapted modules, as PEFT's target_modules lists them.

  A short name, e.g. "q_proj", stands for all modules that end with it; modules of which
  only some are adapted get their full names.

  Args:
    mine: full names of the adapted modules.
    every: full names of all modules of the model.
  """
  short = {name.rpartition(".")[2] for name in mine}
  whole = {n for n in short if all(m in mine for m in every if m.endswith("." + n))}
  return sorted(whole) + [n for n in mine if n.rpartition(".")[2] not in whole]
