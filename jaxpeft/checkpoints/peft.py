"""Saves and loads adapters in the format of Hugging Face's PEFT library.

LoRA, DoRA, VeRA and (IA)3 are saved as PEFT's method of that name. Every other method
is saved as LoRA, exactly where `adapters.convert` is exact.
"""

import json
import pathlib
import re
import tempfile

import jax
import numpy as np
import safetensors
import safetensors.numpy

from jaxpeft import adapters
from jaxpeft.checkpoints import hf, hf_names, peft_methods
from jaxpeft.errors import InputError
from jaxpeft.linear import is_node
from jaxpeft.parallel import distributed
from jaxpeft.tree import path_name

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Options of PEFT that change the result and are not supported; they must be off.
_OFF = (
  "alora_invocation_tokens arrow_config exclude_modules fan_in_fan_out kasa_config "
  "layer_replication layers_to_transform lora_bias megatron_config modules_to_save "
  "monteclora_config target_parameters trainable_token_indices use_bdlora use_qalora"
).split()
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
  nodes = hf_names.modules(params, adapters.is_adapted)
  if not nodes:
    raise InputError("nothing is adapted: there is no adapter to save")
  wrong = [path for path, (_, names) in nodes.items() if not names]
  if wrong:
    raise InputError(
      f"{wrong[0]} is adapted, but PEFT's format can only adapt projections; export "
      "merged weights instead (--format=hf)"
    )
  every = hf_names.modules(params)
  if rank is None and all(
    isinstance(n.adapter, adapters.IA3) for n, _ in nodes.values()
  ):
    for path, (node, _) in nodes.items():
      _check_bias(path, node.adapter, every)
  kinds = {type(node.adapter).__name__ for node, _ in nodes.values()}
  write = (
    peft_methods.WRITERS.get(next(iter(kinds)), peft_methods.write_lora)
    if len(kinds) == 1
    else peft_methods.write_lora
  )
  config, tensors, errors = write(nodes, hf_names.modules(base or {}), rank)
  every = [n for _, names in every.values() for n in names]
  mine = [n for _, names in nodes.values() for n in names]
  config |= dict(target_modules=_targets(mine, every))
  if "feedforward_modules" in config:  # PEFT wants the names that target_modules has
    into = _targets(config["feedforward_modules"], every)
    whole = not set(into) <= set(config["target_modules"])
    config |= dict(target_modules=mine) if whole else dict(feedforward_modules=into)
  source, revision = hf.hub_id(base_name) or (base_name or None, None)
  config = _COMMON | config | dict(base_model_name_or_path=source, revision=revision)
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=directory, prefix=".save-") as tmp:
    tmp = pathlib.Path(tmp)
    flat = {_PREFIX + k: np.ascontiguousarray(x) for k, x in tensors.items()}
    flat = {
      k.replace(_PREFIX + peft_methods.SHARED, "base_model."): x
      for k, x in flat.items()
    }
    safetensors.numpy.save_file(flat, tmp / WEIGHTS, {"format": "pt"})
    (tmp / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    # First, so that a kill here leaves no mixture of two adapters that can be loaded.
    (directory / CONFIG).unlink(missing_ok=True)
    for name in (WEIGHTS, CONFIG):
      (tmp / name).chmod(0o644)
      (tmp / name).replace(directory / name)
  return errors


def load(directory, params):
  """An adapted tree: `params` with the PEFT adapter in a directory.

  Args:
    directory: with adapter_config.json and adapter_model.safetensors.
    params: of the base model, not adapted.
  Raises:
    InputError: a file is damaged; a method or option is not supported; or the adapter
      has modules, shapes or tensors that do not fit the model.
  """
  directory = pathlib.Path(directory)
  try:
    config = json.loads((directory / CONFIG).read_text())
    flat = safetensors.numpy.load_file(directory / WEIGHTS)
  except (OSError, ValueError, safetensors.SafetensorError) as e:
    raise InputError(f"cannot read the PEFT adapter in {directory}: {e}") from e
  if not isinstance(config, dict):
    raise InputError(f"{directory / CONFIG} holds no JSON object")
  kind = config.get("peft_type")
  if kind not in peft_methods.READERS:
    raise InputError(
      f"{directory}: peft_type {kind!r} is not one of {sorted(peft_methods.READERS)}"
    )
  on = [key for key in _OFF if config.get(key)]
  if on or config.get("bias", "none") != "none":
    raise InputError(f"{directory}: {on or ['bias']} in {CONFIG} is not supported")
  tensors = _Tensors(directory, flat)
  rules, fill = {}, {}
  every = hf_names.modules(params)
  for path, (leaf, names) in every.items():
    if adapters.is_adapted(leaf):
      raise InputError(
        f"{path} is adapted already; load {directory} into the base model"
      )
    have = [name for name in names if tensors.has(name)]
    if not have:
      continue
    if have != names:
      raise InputError(
        f"{directory} adapts {len(have)} of the {len(names)} layers of {path}; load "
        "the model with `groups` (model.groups) that separate the adapted layers"
      )
    _check_copies(tensors, names, leaf)
    try:
      read = peft_methods.READERS[kind]
      adapter, leaves = read(config, tensors, names, leaf, directory)
    except (KeyError, TypeError, AttributeError, re.error) as e:
      raise InputError(f"{directory / CONFIG} is damaged: {e!r}") from e
    _check_bias(path, adapter, every)
    rules[re.escape(path)], fill[path] = adapter, leaves
  tensors.check_empty()
  if not rules:
    raise InputError(f"{directory} adapts no projection of this model")
  adapted = adapters.adapt(params, rules, jax.random.key(0))

  def put(key_path, node):
    path = path_name(key_path)
    if path not in fill:
      return node
    new = fill[path]
    for name, own in (node.frozen | node.theta).items():
      if name in new and new[name].shape != own.shape:
        raise InputError(
          f"{directory}: {name} of {path} is {list(new[name].shape)}; the model needs "
          f"{list(own.shape)}"
        )
    frozen = {
      k: new[k].astype(x.dtype) if k in new else x for k, x in node.frozen.items()
    }
    theta = {k: new.get(k, x) for k, x in node.theta.items()}
    return adapters.Adapted(frozen, theta, node.adapter)

  return jax.tree_util.tree_map_with_path(put, adapted, is_leaf=is_node)


def _check_bias(path: str, adapter, every):
  """Refuses (IA)3 on outputs with a bias: PEFT scales the bias, jaxpeft does not."""
  bias = re.sub("/(attn|mlp)/", "/bias/", path)
  if isinstance(adapter, adapters.IA3) and adapter.on == "output" and bias in every:
    raise InputError(
      f"(IA)3 adapts the output of {path}, which has a bias. PEFT scales the bias too, "
      "so the results would differ; use merged weights instead (--format=hf)"
    )


def _check_copies(tensors, names, leaf):
  """Checks and drops the copies of base weights that PEFT saves, e.g. the head's."""
  for name in names:
    copy = f"{name}.base_layer.weight"
    if not tensors.has_tensor(copy):
      continue
    if leaf.ndim != 2 or not np.allclose(tensors.pop(copy).T, leaf, atol=1e-2):
      raise InputError(f"{tensors.directory} holds another base's weight: {copy}")


class _Tensors:
  """The tensors of a file, which remembers those that nobody has read."""

  def __init__(self, directory, flat):
    self.directory, self.flat, self.used = directory, flat, set()
    self.modules = {k.removeprefix(_PREFIX).rpartition(".lora_A")[0] for k in flat}
    self.modules |= {k.removeprefix(_PREFIX).rpartition(".")[0] for k in flat}

  def has(self, module: str) -> bool:
    return module in self.modules

  def has_tensor(self, name: str) -> bool:
    return _PREFIX + name in self.flat

  def shared(self, key: str):
    """The tensor at a full key, e.g. one that all modules share."""
    if key not in self.flat:
      raise InputError(f"{self.directory}/{WEIGHTS} has no tensor {key}")
    self.used.add(key)
    return self.flat[key].astype(np.float32)

  def pop(self, name: str):
    """The tensor of a module, by its name in the model."""
    return self.shared(_PREFIX + name)

  def check_empty(self):
    """Raises InputError if a tensor was not read."""
    left = sorted(self.flat.keys() - self.used)
    if left:
      raise InputError(
        f"{self.directory}/{WEIGHTS} has {len(left)} tensors with no place in this "
        f"model, e.g. {left[0]}"
      )


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
