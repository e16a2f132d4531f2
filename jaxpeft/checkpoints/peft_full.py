"""Whole trained tensors in PEFT's format: modules_to_save, trained tokens, biases.

Each of them becomes a `Full` adapter, so that export, merging, resuming and further
training treat it like any other adapter. `Full` holds a whole leaf in float32: if PEFT
trained the weight in some layers of a stack only, or some rows of the embedding only,
the others start as the base's, and further training trains them, too.
"""

import re

import jax
import numpy as np

from jaxpeft import adapters
from jaxpeft.checkpoints import peft_config, peft_names
from jaxpeft.checkpoints.peft_config import CONFIG
from jaxpeft.checkpoints.peft_names import EMBED, HEAD, Part
from jaxpeft.checkpoints.peft_tensors import Tensors
from jaxpeft.errors import InputError
from jaxpeft.linear import dense

_ROWS = "token_adapter.trainable_tokens_delta"


def read(config: dict, tensors: Tensors, parts: dict[str, Part]) -> dict:
  """{path: {layer: array in our orientation}} of the leaves with whole trained tensors.

  Args:
    config: the options.
    tensors: of the file; those that are read here are taken out.
    parts: see `peft_names.parts`.
  Raises:
    InputError: a tensor does not fit the model, or token indices are invalid.
  """
  found: dict[str, dict] = {}
  for path, part in parts.items():
    for i, module in enumerate(part.modules):
      base = lambda p=path, x=part.leaf, i=i: _base(p, x, i)  # noqa: E731
      new = _copy(tensors, path, part, module)
      if part.tensor == "bias" and tensors.has(f"{module}.lora_B.bias"):
        new = _with_lora_bias(config, tensors, module, base() if new is None else new)
      rows = part.tensor == "weight" and token_indices(config, module)
      if rows or tensors.has(f"{module}.{_ROWS}"):
        new = _with_rows(config, tensors, part, module, base())
      named = _is_copied(config, peft_config.name_in(tensors, module))
      if new is None and named:
        tensors.pop(f"{module}.{part.tensor}")  # an error: it is missing
      if new is None:
        continue
      named = named or part.tensor == "bias"
      # PEFT adds copies of the embedding and the head if the vocabulary has changed.
      if named or not np.array_equal(new.astype(part.leaf.dtype), base()):
        found.setdefault(path, {})[i] = new
  return found


def _is_copied(config, name: str) -> bool:
  """Whether modules_to_save selects a module, or one that it is in, by its ending."""
  outer = [name[: m.start()] for m in re.finditer(r"\.|$", name)]
  return any(
    x.endswith(end) for x in outer for end in config.get("modules_to_save") or []
  )


def _copy(tensors, path: str, part: Part, module: str):
  """The module's own tensor in the file; None if it has none."""
  shape = part.leaf.shape[adapters.is_stacked(path) :]
  shape = shape[::-1] if part.linear else shape
  names = [f"{module}.{part.tensor}"]
  names += [f"{module}.base_layer.bias"] if part.tensor == "bias" else []
  have = [name for name in names if tensors.has(name)]
  if not have:
    return None
  try:
    return part.theirs(tensors.pop(have[0], shape))
  except InputError as e:
    hint = "; if the adapter added tokens, resize the base's vocabulary first"
    raise InputError(f"{e}{hint if module in (EMBED, HEAD) else ''}") from e


def _with_lora_bias(config, tensors, module, bias):
  """The base's bias plus that of the LoRA, which has the LoRA's scale."""
  name = peft_config.name_in(tensors, module)
  r = peft_config.pattern(config.get("rank_pattern"), name, config["r"])
  alpha = peft_config.pattern(config.get("alpha_pattern"), name, config["lora_alpha"])
  scale = alpha / (r**0.5 if config.get("use_rslora") else r)
  return bias + np.float32(scale) * tensors.pop(f"{module}.lora_B.bias", bias.shape)


def _with_rows(config, tensors, part: Part, module: str, weight):
  """The embedding or head with the rows of the trained tokens replaced."""
  weight = np.array(part.theirs(weight))
  rows = token_indices(config, module)
  size = len(weight)
  wrong = [n for n in rows if type(n) is not int or not 0 <= n < size]
  if wrong or not rows:
    raise InputError(
      f"{tensors.directory / CONFIG}: token {(wrong or rows or [None])[0]!r} in "
      f"trainable_token_indices is not one of the model's tokens 0 to {size - 1}"
    )
  weight[rows] = tensors.pop(f"{module}.{_ROWS}", (len(rows), weight.shape[1]))
  return part.theirs(weight)


def token_indices(config: dict, module: str) -> list:
  """The tokens whose rows of the embedding or the head are trained."""
  tokens = config.get("trainable_token_indices") or []
  if isinstance(tokens, list):
    return tokens if module == EMBED else []
  named = (rows for name, rows in tokens.items() if module.endswith(name))
  return next(named, []) if module in (EMBED, HEAD) else []


def _base(path: str, leaf, i: int) -> np.ndarray:
  """Layer i of the base's leaf in float32; the leaf itself if it is no stack."""
  layer = jax.tree.map(lambda x: x[i], leaf) if adapters.is_stacked(path) else leaf
  return np.asarray(dense(layer), np.float32)


def adapt(path: str, leaf, layers: dict) -> adapters.Adapted:
  """A `Full` node for a leaf.

  Args:
    path: of the leaf.
    leaf: the base's array or weight node.
    layers: {layer: array}; other layers keep the base's values.
  """
  depth = peft_names.depth(path, leaf)
  found = [layers[i] if i in layers else _base(path, leaf, i) for i in range(depth)]
  w = np.stack(found) if adapters.is_stacked(path) else found[0]
  return adapters.Adapted({}, dict(w=jax.numpy.asarray(w)), adapters.Full())


# ---- writing ----------------------------------------------------------------------


def write(full: dict, parts: dict[str, Part], targets: list[str], tied: bool):
  """(options, {module: {leaf: array}}) of `Full` nodes in PEFT's format.

  Args:
    full: {path: node} of the nodes.
    parts: see `peft_names.parts`, of the whole adapted tree.
    targets: the modules that have other adapters.
    tied: whether the head is the embedding.
  """
  tensors: dict[str, dict] = {}
  biases, copies = [], []
  for path, node in full.items():
    part = parts[path]
    for i, module in enumerate(part.modules):
      w = np.asarray(
        node.theta["w"][i] if adapters.is_stacked(path) else node.theta["w"]
      )
      wrapped = part.tensor == "bias" and module in targets
      name = f"base_layer.{part.tensor}" if wrapped else part.tensor
      tensors.setdefault(module, {})[name] = np.asarray(part.theirs(w))
      (biases if part.tensor == "bias" else copies).append(module)
  # PEFT copies whole modules, so the copy of a projection needs its bias as well.
  for path, part in parts.items():
    for i, module in enumerate(part.modules):
      if part.tensor == "bias" and module in copies and "bias" not in tensors[module]:
        tensors[module]["bias"] = _base(path, part.leaf, i)
  options: dict = {}
  only = set(biases) - set(copies)
  if only:
    options |= dict(bias="lora_only" if only <= set(targets) else "all")
  if EMBED in copies and tied:
    tensors[HEAD] = dict(tensors[EMBED])
    options |= dict(ensure_weight_tying=True)
    copies.append(HEAD)
  every = [m for p in parts.values() for m in p.modules] + ([HEAD] if tied else [])
  if copies:
    options |= dict(modules_to_save=_short(copies, every))
  return options, tensors


def _short(mine: list[str], every: list[str]) -> list[str]:
  """Names for modules_to_save, which stand for all modules that end with them."""
  ends = {re.sub(r".*\.", "", name) for name in mine}
  whole = {end for end in ends if all(m in mine for m in every if m.endswith(end))}
  return sorted(whole) + [m for m in mine if re.sub(r".*\.", "", m) not in whole]
