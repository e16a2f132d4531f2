"""Converts between the metadata of a GGUF file and a model's config.

Reading gives what Hugging Face's config.json would hold, so that `hf_config` alone says
what is supported. Sources: llama.cpp's conversion/*.py and src/models/*.cpp.
"""

from typing import Any

import numpy as np

from jaxpeft.checkpoints import gguf_file, gguf_names, gguf_rope
from jaxpeft.errors import InputError
from jaxpeft.transformer.attention import EVERYWHERE
from jaxpeft.transformer.config import ModelConfig

# Metadata key after the architecture's name -> field of config.json.
_FIELDS = {
  "block_count": "num_hidden_layers",
  "context_length": "max_position_embeddings",
  "embedding_length": "hidden_size",
  "feed_forward_length": "intermediate_size",
  "attention.head_count": "num_attention_heads",
  "attention.head_count_kv": "num_key_value_heads",
  "attention.key_length": "head_dim",
  "attention.layer_norm_rms_epsilon": "rms_norm_eps",
  "attention.sliding_window": "sliding_window",
  "rope.freq_base": "rope_theta",
  "attn_logit_softcapping": "attn_logit_softcapping",
  "final_logit_softcapping": "final_logit_softcapping",
  "attention.scale": "attention_multiplier",
  "embedding_scale": "embedding_multiplier",
  "residual_scale": "residual_multiplier",
  "logit_scale": "logits_scaling",
  "expert_count": "num_experts",
  "expert_used_count": "num_experts_per_tok",
  "expert_feed_forward_length": "moe_intermediate_size",
}
_REQUIRED = (
  "block_count",
  "context_length",
  "embedding_length",
  "attention.head_count",
  "attention.layer_norm_rms_epsilon",
)
_REALS = (
  """attention.layer_norm_rms_epsilon rope.freq_base rope.freq_base_swa
  attn_logit_softcapping final_logit_softcapping attention.scale embedding_scale
  residual_scale logit_scale rope.scaling.factor rope.scaling.attn_factor
  rope.scaling.yarn_attn_factor rope.scaling.yarn_beta_fast
  rope.scaling.yarn_beta_slow"""
).split()
# Further keys that are read, or that change nothing, and the types that they must have.
_TYPES: dict[str, Any] = {
  **dict.fromkeys(_FIELDS, int),
  **dict.fromkeys(_REALS, (int, float)),
  "attention.value_length": int,
  "attention.causal": bool,
  "attention.sliding_window_pattern": (int, np.ndarray),
  "rope.dimension_count": int,
  "rope.scaling.type": str,
  "rope.scaling.original_context_length": int,
  "rope.scaling.finetuned": (bool, int),
}
_COMPUTES = ("attention.", "rope.", "expert_", "ssm.")
# The models of these families whose queries are scaled by width / heads have so many
# layers; the file does not hold the scale.
_WIDTH_SCALED = {"gemma2": 46, "gemma3_text": 62}
_EOS_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def to_hf(file: gguf_file.File) -> dict:
  """The `config.json` that Hugging Face would have for a GGUF file.

  Raises:
    InputError: the architecture or a value is not supported, or a key is missing.
  """
  name, row = gguf_names.of_file(file.meta, file.place)
  meta = {
    key.removeprefix(f"{name}."): _scalar(value, key, file.place)
    for key, value in file.meta.items()
    if key.startswith(f"{name}.")
  }
  _check(meta, name, file)
  hf: dict[str, Any] = {
    field: meta[key] for key, field in _FIELDS.items() if key in meta
  }
  width, heads = hf["hidden_size"], hf["num_attention_heads"]
  hf.setdefault("num_key_value_heads", heads)
  hf.setdefault("head_dim", max(width // heads, 1))
  hf.setdefault("rope_theta", 10_000.0)

  def id_of(key: str) -> int | None:
    return gguf_file.value(file.meta, f"tokenizer.ggml.{key}", int, file.place)

  eos = [id_of(key) for key in _EOS_KEYS]
  eos = list(dict.fromkeys(i for i in eos if i is not None))
  hf |= dict(
    model_type=row.family,
    vocab_size=file.tensors["token_embd.weight"].shape[0],
    hidden_act=row.activation,
    hidden_activation=row.activation,
    tie_word_embeddings="output.weight" not in file.tensors,
    attention_bias="blk.0.attn_output.bias" in file.tensors,
    mlp_bias="blk.0.ffn_up.bias" in file.tensors,
    bos_token_id=id_of("bos_token_id"),
    eos_token_id=eos if len(eos) > 1 else (*eos, None)[0],
    pad_token_id=id_of("padding_token_id"),
    rope_scaling=gguf_rope.read(meta, hf, file),
  )
  rotated = meta.get("rope.dimension_count", hf["head_dim"])
  if rotated != hf["head_dim"]:
    hf["partial_rotary_factor"] = rotated / hf["head_dim"]
  return hf | dict(row.facts) | _of_family(row.family, meta, hf)


def _scalar(value, key: str, place: str):
  """A value; one for each layer is taken as one, but for the pattern of windows."""
  if not isinstance(value, np.ndarray) or key.endswith("sliding_window_pattern"):
    return value
  if len(set(value.tolist())) != 1:  # NaN differs from itself, and is refused later
    raise InputError(f"{place}: {key} differs between layers, which is not supported")
  return value[0].item()


def _check(meta: dict, name: str, file: gguf_file.File):
  """Refuses metadata that are incomplete, of wrong types, or would be ignored."""
  missing = [key for key in _REQUIRED if key not in meta]
  if missing:
    raise InputError(f"{file.place}: the key {name}.{missing[0]} is missing")
  if "token_embd.weight" not in file.tensors:
    raise InputError(f"{file.place}: missing token_embd.weight")
  for key, kinds in _TYPES.items():
    gguf_file.value(meta, key, kinds, f"{file.place}, {name}.*")
  depth, most = meta["block_count"], len(file.tensors)
  if not 1 <= depth <= most:
    raise InputError(f"{file.place}: {name}.block_count is {depth}, not 1 to {most}")
  for key in ("attention.head_count", "attention.key_length"):
    if meta.get(key, 1) < 1:
      raise InputError(f"{file.place}: {name}.{key} is {meta[key]}, below 1")
  experts = file.tensors.get("blk.0.ffn_gate_exps.weight")
  if meta.get("expert_count", 0) != (experts.shape[0] if experts else 0):
    raise InputError(
      f"{file.place}: {name}.expert_count is {meta.get('expert_count', 0)}, which is "
      "not the number of experts in blk.0.ffn_gate_exps.weight"
    )
  for key, value in meta.items():
    known = key in _TYPES or not key.startswith(_COMPUTES)
    if not known and not (isinstance(value, int | float | str) and not value):
      raise InputError(
        f"{file.place}: {name}.{key} = {str(value)[:40]} is not supported"
      )
  if not meta.get("attention.causal", True):
    raise InputError(f"{file.place}: {name}.attention.causal = False is not supported")
  key_length = meta.get("attention.key_length")
  if meta.get("attention.value_length", key_length) != key_length:
    raise InputError(
      f"{file.place}: {name}.attention.value_length differs from key_length, which is "
      "not supported"
    )


def _of_family(family: str, meta: dict, hf: dict) -> dict:
  """Fields of one family that the metadata leave to the reader, or name otherwise."""
  depth, window = hf["num_hidden_layers"], hf.get("sliding_window") or None
  found: dict[str, Any] = dict(sliding_window=window)
  if family in _WIDTH_SCALED:
    wide = depth == _WIDTH_SCALED[family]
    scale = hf["hidden_size"] // hf["num_attention_heads"] if wide else hf["head_dim"]
    found |= dict(query_pre_attn_scalar=scale)
  if family == "gemma3_text":
    found |= dict(rope_local_base_freq=meta.get("rope.freq_base_swa", 10_000.0))
  if family in ("gemma3_text", "olmo3"):
    period = 6 if family == "gemma3_text" else 4
    pattern = meta.get("attention.sliding_window_pattern", period)
    if not isinstance(pattern, np.ndarray):
      pattern = max(pattern, 1)
      pattern = [window is not None and (i + 1) % pattern != 0 for i in range(depth)]
    names = ("full_attention", "sliding_attention")
    found |= dict(layer_types=[names[bool(local)] for local in pattern])
  if family == "smollm3":
    found |= dict(no_rope_layers=[int((i + 1) % 4 != 0) for i in range(depth)])
  if family == "mixtral":
    found |= dict(num_local_experts=hf["num_experts"], num_experts=None)
  return found


def from_config(c: ModelConfig) -> dict[str, Any]:
  """The metadata of a model's architecture, to write; keys begin with its name.

  Raises:
    InputError: GGUF has no architecture for the family, or no key for a value.
  """
  name, _ = gguf_names.of_family(c.family)
  meta: dict[str, Any] = {
    "block_count": c.depth,
    "context_length": c.max_positions,
    "embedding_length": c.width,
    "feed_forward_length": c.ff,
    "attention.head_count": c.heads,
    "attention.head_count_kv": c.kv_heads,
    "attention.key_length": c.head_dim,
    "attention.value_length": c.head_dim,
    "attention.layer_norm_rms_epsilon": float(c.rms_eps),
    "vocab_size": c.vocab_size,
  }
  return {f"{name}.{key}": value for key, value in meta.items()} | {
    f"{name}.{key}": value for key, value in _optional(c).items()
  }


def _optional(c: ModelConfig) -> dict[str, Any]:
  """Metadata that only some models have."""
  found: dict[str, Any] = gguf_rope.write(c)
  if c.windows:
    found["attention.sliding_window"] = min(c.windows)
    if c.family == "olmo3":
      local = [w != EVERYWHERE for w in c.windows]
      found["attention.sliding_window_pattern"] = local
  if c.family == "phi3" and not c.windows:
    found["attention.sliding_window"] = 0
  if c.attn_softcap:
    found["attn_logit_softcapping"] = float(c.attn_softcap)
  if c.final_softcap:
    found["final_logit_softcapping"] = float(c.final_softcap)
  if c.family == "granite":
    scale = c.query_scale or c.head_dim**-0.5
    found["attention.scale"] = float(scale)
    found["embedding_scale"] = float(c.embed_scale)
    found["residual_scale"] = float(c.residual_scale)
    found["logit_scale"] = float(c.logit_scale)
  if c.experts:
    found["expert_count"] = c.experts
    found["expert_used_count"] = c.experts_per_token
    found["expert_feed_forward_length"] = c.ff
  return found
