"""Adapters in Hugging Face PEFT's format: adapter_config.json and safetensors.

LoRA, DoRA, VeRA and (IA)3 are written as PEFT has them; every other method as LoRA,
exactly where `adapters.convert` can. Theirs are [out, in], ours are [in, out].
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

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# What changes the result and is not supported: refused unless off.
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
  """Raises InputError where there are several: adapters are not gathered here."""
  if distributed.count() > 1:
    raise InputError(
      "PEFT's format is written by one process (--format=peft); start no more, or "
      "export merged weights (format hf)"
    )


def save(directory, params, base=None, rank: int | None = None, base_name="") -> dict:
  """Writes the adapters of `params` as PEFT's.

  Args:
    directory: to be made, or to have its adapter replaced.
    params: an adapted tree.
    base: the tree before `adapt`, for methods that do not keep the base's weights.
    rank: of the nearest LoRA, for methods that are none.
    base_name: the model's path or hub id, for PEFT to find it.
  Returns:
    {path: relative error of the update}; 0 where the format holds the method itself.
  Raises:
    InputError: an adapted leaf that PEFT cannot hold, or `base` or `rank` is needed;
      several processes.
  """
  check_processes()
  nodes = hf_names.modules(params, adapters.is_adapted)
  if not nodes:
    raise InputError("nothing is adapted: there is no adapter to save")
  wrong = [path for path, (_, names) in nodes.items() if not names]
  if wrong:
    raise InputError(
      f"{wrong[0]} is adapted, and PEFT's format holds adapters of projections only; "
      "export merged weights instead (format hf)"
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
  if "feedforward_modules" in config:  # PEFT wants them named as among the targets
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
    (directory / CONFIG).unlink(missing_ok=True)  # a kill leaves none, not a mixture
    for name in (WEIGHTS, CONFIG):
      (tmp / name).chmod(0o644)
      (tmp / name).replace(directory / name)
  return errors


def load(directory, params):
  """`params` (plain arrays) adapted with the PEFT adapter in a directory.

  Raises:
    InputError: damaged files, a method or option that is not supported, modules or
      shapes that the model does not have, tensors left over.
  """
  directory = pathlib.Path(directory)
  try:
    config = json.loads((directory / CONFIG).read_text())
    flat = safetensors.numpy.load_file(directory / WEIGHTS)
  except (OSError, ValueError, safetensors.SafetensorError) as e:
    raise InputError(f"cannot read the PEFT adapter in {directory}: {e}") from e
  if not isinstance(config, dict):
    raise InputError(f"{directory / CONFIG} is no JSON object")
  kind = config.get("peft_type")
  if kind not in peft_methods.READERS:
    raise InputError(
      f"{directory}: peft_type {kind!r} is none of {sorted(peft_methods.READERS)}"
    )
  on = [key for key in _OFF if config.get(key)]
  if on or config.get("bias", "none") != "none":
    raise InputError(f"{directory}: {on or ['bias']} in {CONFIG} is not supported")
  tensors = _Tensors(directory, flat)
  rules, fill = {}, {}
  every = hf_names.modules(params)
  for path, (leaf, names) in every.items():
    if adapters.is_adapted(leaf):
      raise InputError(f"{path} is adapted already; load {directory} onto the base")
    have = [name for name in names if tensors.has(name)]
    if not have:
      continue
    if have != names:
      raise InputError(
        f"{directory} adapts {len(have)} of the {len(names)} layers of {path}; load "
        "the model with `groups` that separate them"
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
    path = jax.tree_util.keystr(key_path, simple=True, separator="/")
    if path not in fill:
      return node
    new = fill[path]
    for name, own in (node.frozen | node.theta).items():
      if name in new and new[name].shape != own.shape:
        raise InputError(
          f"{directory}: {name} of {path} is {list(new[name].shape)}, the model needs "
          f"{list(own.shape)}"
        )
    frozen = {
      k: new[k].astype(x.dtype) if k in new else x for k, x in node.frozen.items()
    }
    theta = {k: new.get(k, x) for k, x in node.theta.items()}
    return adapters.Adapted(frozen, theta, node.adapter)

  return jax.tree_util.tree_map_with_path(put, adapted, is_leaf=is_node)


def _check_bias(path: str, adapter, every):
  """Refuses (IA)3 behind a bias, which PEFT scales and jaxpeft does not."""
  bias = re.sub("/(attn|mlp)/", "/bias/", path)
  if isinstance(adapter, adapters.IA3) and adapter.on == "output" and bias in every:
    raise InputError(
      f"(IA)3 on the output of {path}, which has a bias: PEFT scales the bias too, so "
      "the results would differ; use merged weights (format hf)"
    )


def _check_copies(tensors, names, leaf):
  """Takes copies of base weights (PEFT adds the head's) if they are the model's."""
  for name in names:
    copy = f"{name}.base_layer.weight"
    if not tensors.has_tensor(copy):
      continue
    if leaf.ndim != 2 or not np.allclose(tensors.pop(copy).T, leaf, atol=1e-2):
      raise InputError(f"{tensors.directory} holds another base's weight: {copy}")


class _Tensors:
  """The file's tensors by module name; what nobody takes is an error."""

  def __init__(self, directory, flat):
    self.directory, self.flat, self.used = directory, flat, set()
    self.modules = {k.removeprefix(_PREFIX).rpartition(".lora_A")[0] for k in flat}
    self.modules |= {k.removeprefix(_PREFIX).rpartition(".")[0] for k in flat}

  def has(self, module: str) -> bool:
    return module in self.modules

  def has_tensor(self, name: str) -> bool:
    return _PREFIX + name in self.flat

  def shared(self, key: str):
    """A tensor that all modules use."""
    if key not in self.flat:
      raise InputError(f"{self.directory}/{WEIGHTS} has no tensor {key}")
    self.used.add(key)
    return self.flat[key].astype(np.float32)

  def pop(self, name: str):
    return self.shared(_PREFIX + name)

  def check_empty(self):
    left = sorted(self.flat.keys() - self.used)
    if left:
      raise InputError(
        f"{self.directory}/{WEIGHTS} has {len(left)} tensors with no place in this "
        f"model, e.g. {left[0]}"
      )


def _targets(mine: list[str], every: list[str]) -> list[str]:
  """Short names where all modules of that name are adapted, else whole ones."""
  short = {name.rpartition(".")[2] for name in mine}
  whole = {n for n in short if all(m in mine for m in every if m.endswith("." + n))}
  return sorted(whole) + [n for n in mine if n.rpartition(".")[2] not in whole]
