"""What adapter_config.json says: options that matter, and which modules are adapted.

Written for the files of PEFT 0.2 to 0.21. Every option that PEFT has is in one of the
two sets below; an option that is null, false or empty never matters.
"""

import json
import pathlib
import re

from jaxpeft import console
from jaxpeft.checkpoints import peft_names
from jaxpeft.checkpoints.peft_tensors import WEIGHTS, Tensors
from jaxpeft.errors import InputError

CONFIG = "adapter_config.json"
# Options that change what the adapter computes, in ways that no method here has.
_REFUSED = frozenset(
  """alora_invocation_tokens arrow_config enable_lora kasa_config layer_replication
  monteclora_config target_parameters use_bdlora use_qalora""".split()
)
# Options that are read here, or that concern only the start of training, training
# itself, or where the file comes from. fan_in_fan_out matters for GPT-2's layers only.
_KNOWN = frozenset(
  """alpha_pattern auto_mapping base_model_name_or_path bias corda_config d_initial
  ensure_weight_tying eva_config exclude_modules fan_in_fan_out feedforward_modules
  inference_mode init_ia3_weights init_lora_weights init_weights layers_pattern
  layers_to_transform loftq_config lora_alpha lora_bias lora_dropout lora_ga_config
  megatron_config megatron_core merge_weights modules_to_save peft_type peft_version
  projection_prng_key qalora_group_size r rank_pattern revision runtime_config
  save_projection target_modules task_type trainable_token_indices use_dora use_rslora
  velora_config vera_dropout""".split()
)


def read(directory: pathlib.Path) -> dict:
  """The options of the adapter in a directory.

  Raises:
    InputError: the file is missing or damaged, or an option cannot be computed here.
  """
  place = directory / CONFIG
  try:
    config = json.loads(place.read_text())
  except (OSError, ValueError, RecursionError) as e:
    raise InputError(f"cannot read the PEFT adapter in {directory}: {e}") from e
  if not isinstance(config, dict):
    raise InputError(f"{place} holds no JSON object")
  on = {key: value for key, value in config.items() if value}
  for key in sorted(_REFUSED & on.keys()):
    raise InputError(
      f"{place}: {key} = {on[key]!r} changes what the adapter computes in a way that "
      "is not supported; merge it in PEFT (merge_and_unload) and load that model"
    )
  unknown = sorted(on.keys() - _KNOWN)
  if unknown:
    console.note(f"{place}: unknown options are ignored: {', '.join(unknown)}")
  return config


def pattern(patterns, name: str, default):
  """The value of the first of PEFT's patterns that matches a module.

  Args:
    patterns: rank_pattern or alpha_pattern, {regex: value}; None is {}.
    name: the module's name in the adapted model.
    default: the value if no pattern matches.
  """
  for key, value in (patterns or {}).items():
    if re.match(rf"(.*\.)?({key})$", name):
      return value
  return default


def check_modules(config: dict, tensors: Tensors, parts: dict):
  """Checks that the file adapts exactly the modules that the options select.

  PEFT would start the adapters of missing modules anew, and ignore superfluous ones.

  Args:
    config: the options; their target_modules may be null, then nothing is checked.
    tensors: of the file.
    parts: see `peft_names.parts`.
  Raises:
    InputError: a selected module has no tensors, or a module with tensors is not
      selected.
  """
  linear = {p: part for p, part in parts.items() if part.linear or p == "embed"}
  for path, part in linear.items():
    if config.get("target_modules") is None:
      return
    for module in part.modules:
      selected = _selects(config, name_in(tensors, module), path)
      if selected and module not in tensors.adapted:
        raise InputError(
          f"{tensors.directory}: {CONFIG} selects {module}, but {WEIGHTS} has no "
          "tensors for it; the file is incomplete, or belongs to another adapter"
        )
      if not selected and module in tensors.adapted:
        raise InputError(
          f"{tensors.directory}: {WEIGHTS} has tensors for {module}, which "
          f"target_modules in {CONFIG} does not select; add it there, if it belongs "
          "to the adapter"
        )


def name_in(tensors: Tensors, module: str) -> str:
  """A module's name in the adapted model, to which the options' patterns refer."""
  module = tensors.fused.get(module, module)
  return module.removeprefix("model.") if tensors.bare else module


def _selects(config: dict, name: str, path: str) -> bool:
  """Whether PEFT adapts a module; its `check_target_module_exists`."""
  targets, excluded = config["target_modules"], config.get("exclude_modules") or []
  if isinstance(excluded, str):
    if re.fullmatch(excluded, name):
      return False
  elif _ends(name, excluded):
    return False
  copies = config.get("modules_to_save") or []
  if any(re.match(rf"(^|.*\.){module}($|\..*)", name) for module in copies):
    return False
  if isinstance(targets, str):
    if targets.lower() == "all-linear":
      return path not in ("head", "embed", "score")
    return bool(re.fullmatch(targets, name))
  if name in targets:
    return True
  return _ends(name, targets) and _in_layers(config, name)


def _ends(name: str, ends: list[str]) -> bool:
  return any(name == end or name.endswith(f".{end}") for end in ends)


def _in_layers(config: dict, name: str) -> bool:
  layers = config.get("layers_to_transform")
  if layers is None or layers == []:
    return True
  patterns = config.get("layers_pattern") or [r"[^.]*"]
  patterns = [patterns] if isinstance(patterns, str) else patterns
  starts = r".*?\." if not config.get("layers_pattern") else r"(?:^|.*?\.)"
  found = (re.match(rf"{starts}{p}\.(\d+)\.", name) for p in patterns)
  first = next((int(match[1]) for match in found if match), None)
  return first in ([layers] if isinstance(layers, int) else layers)


def check_tied(config: dict, tensors: Tensors, params):
  """Drops the head's tensors if the model has no head and they equal the embedding's.

  Args:
    config: the options.
    tensors: of the file.
    params: of the base model.
  Raises:
    InputError: the adapter changes the embedding and the head in different ways, but in
      this model they are one matrix.
  """
  if not peft_names.is_tied(params):
    return
  embed, head = peft_names.EMBED, peft_names.HEAD
  pairs = [
    ("lora_embedding_B", "lora_A.weight", True),
    ("lora_embedding_A", "lora_B.weight", True),
    ("weight", "weight", False),
    ("base_layer.weight", "base_layer.weight", False),
    ("token_adapter.trainable_tokens_delta",) * 2 + (False,),
  ]
  for ours, theirs, transposed in pairs:
    one, other = f"{embed}.{ours}", f"{head}.{theirs}"
    same = tensors.has(one) or not tensors.has(other)
    if same and tensors.has(other):
      a, b = tensors.peek(one), tensors.pop(other)
      a = a.T if transposed else a
      same = a.shape == b.shape and (abs(a - b) <= 1e-6 * (1 + abs(a))).all()
    # The head follows the trained tokens of an embedding that it is tied to.
    follows = config.get("ensure_weight_tying") or ours.startswith(("token", "base"))
    same = same and (follows or tensors.has(other) or not tensors.has(one))
    if not same:
      raise InputError(
        f"{tensors.directory} changes {embed} and {head} in different ways, but this "
        "model ties them: one matrix is both. Give the base a head of its own "
        "(tie_word_embeddings false in its config.json, and lm_head.weight)"
      )
