"""Converts between Hugging Face's `config.json` and `ModelConfig`."""

import math
from typing import Any

from jaxpeft.checkpoints import bnb, hf_fields, hf_rope
from jaxpeft.checkpoints.families import FAMILIES, MULTIMODAL, Family
from jaxpeft.checkpoints.hf_fields import Fields
from jaxpeft.errors import InputError, unknown
from jaxpeft.transformer.attention import EVERYWHERE
from jaxpeft.transformer.config import ModelConfig

_ACTIVATIONS = {
  "silu": "silu",
  "swish": "silu",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_new": "gelu_tanh",
}
_MOST_LAYERS = 10_000
# Fields of ModelConfig whose name in config.json differs from ours.
_SIZES = dict(
  vocab_size="vocab_size",
  width="hidden_size",
  depth="num_hidden_layers",
  heads="num_attention_heads",
  ff="intermediate_size",
  max_positions="max_position_embeddings",
)


def from_hf(hf: dict, place: str = "config.json") -> ModelConfig:
  """The `ModelConfig` of a `config.json` that transformers 4 or 5 wrote.

  Of a model of text and images, it is the language model.

  Args:
    hf: the JSON object.
    place: its path, for messages.
  Raises:
    InputError: a model_type or a value is missing or not supported, or a field that
      changes the computation is (`hf_fields`); the message names it.
  """
  if not isinstance(hf, dict):
    raise InputError(f"{place} holds no JSON object")
  hf = _language_model(hf, place)
  name = hf.get("model_type")
  if not isinstance(name, str) or name not in FAMILIES:
    raise unknown(f"model_type in {place}", name, [*FAMILIES, *MULTIMODAL])
  family = FAMILIES[name]
  hf = {family.aliases.get(k, k): x for k, x in hf.items()}
  f = Fields(hf, family.defaults, place)
  if f.object("quantization_config"):
    bnb.check_config(f.object("quantization_config"), place)
  hf_fields.check(hf, _known(family), place)
  facts: dict[str, Any] = {}
  for ours, theirs in _SIZES.items():
    if ours not in family.fields.values():
      facts[ours] = f.integer(theirs)
  heads, depth = facts["heads"], facts["depth"]
  if depth > _MOST_LAYERS:
    raise InputError(f"{place}: num_hidden_layers {depth} exceeds {_MOST_LAYERS}")
  head_dim = f.integer("head_dim", max(facts["width"] // heads, 1))
  bias = f.boolean("attention_bias")
  facts |= dict(
    family=name,
    kv_heads=f.integer("num_key_value_heads", heads),
    head_dim=head_dim,
    rms_eps=f.positive("rms_norm_eps", 1e-6),
    tied=f.boolean("tie_word_embeddings"),
    activation=_activation(f),
    qkv_bias=bias,
    o_bias=bias,
    mlp_bias=f.boolean("mlp_bias"),
    bos_id=f.id("bos_token_id"),
    eos_ids=f.ids("eos_token_id"),
    pad_id=f.id("pad_token_id"),
  )
  for theirs, ours in family.fields.items():
    facts[ours] = _read(f, theirs, family.defaults[theirs])
  if family.facts.get("scaled_embedding"):
    facts["embed_scale"] = math.sqrt(facts["width"])
  if "query_pre_attn_scalar" in family.defaults:
    facts["query_scale"] = f.positive("query_pre_attn_scalar") ** -0.5
    for ours, theirs in _SOFT_CAPS.items():
      cap = f.get(theirs) if theirs not in hf else hf[theirs]  # null disables it
      facts[ours] = None if cap is None else f.positive(theirs)
  local = _local(f, family, depth)
  window = f.integer("sliding_window") if any(local) else EVERYWHERE
  facts["windows"] = tuple(window if x else EVERYWHERE for x in local) * any(local)
  facts |= {k: x for k, x in family.facts.items() if k != "scaled_embedding"}
  facts |= hf_rope.read(f, family, local, head_dim)
  extended = facts["ropes"][0]
  if extended.kind == "dynamic":  # it is meant to be used beyond these positions
    factor = dict(extended.options)["factor"]
    facts["max_positions"] = int(facts["max_positions"] * factor)
  try:
    return ModelConfig(**facts)
  except ValueError as e:
    raise InputError(f"{place}: {e}") from e


_SOFT_CAPS = dict(
  attn_softcap="attn_logit_softcapping", final_softcap="final_logit_softcapping"
)


def to_hf(c: ModelConfig, dtype: str) -> dict:
  """A `config.json` that transformers can read; the inverse of `from_hf`.

  Args:
    c: config of the model.
    dtype: of the saved weights, e.g. "bfloat16".
  """
  family = FAMILIES[c.family]
  activation = {v: k for k, v in reversed(_ACTIVATIONS.items())}[c.activation]
  hf: dict[str, Any] = dict(
    architectures=[f"{family.architecture}ForCausalLM"],
    model_type=c.family,
    dtype=dtype,
    vocab_size=c.vocab_size,
    hidden_size=c.width,
    num_hidden_layers=c.depth,
    num_attention_heads=c.heads,
    num_key_value_heads=c.kv_heads,
    head_dim=c.head_dim,
    intermediate_size=c.ff,
    rms_norm_eps=c.rms_eps,
    **hf_rope.write(c, family),
    tie_word_embeddings=c.tied,
    hidden_act=activation,
    bos_token_id=c.bos_id,
    eos_token_id=list(c.eos_ids) if len(c.eos_ids) > 1 else (*c.eos_ids, None)[0],
    pad_token_id=c.pad_id,
  )
  if "attention_bias" in family.uses:
    hf["attention_bias"] = c.o_bias
  if "mlp_bias" in family.uses:
    hf["mlp_bias"] = c.mlp_bias
  if "query_pre_attn_scalar" in family.defaults:
    hf |= dict(
      hidden_activation=activation,
      query_pre_attn_scalar=round((c.query_scale or c.head_dim**-0.5) ** -2),
      attn_logit_softcapping=c.attn_softcap,
      final_logit_softcapping=c.final_softcap,
    )
  for theirs, ours in family.fields.items():
    value = getattr(c, ours)
    hf[theirs] = c.head_dim**-0.5 if value is None else value
  if "window" in family.uses:
    hf["sliding_window"] = min(c.windows) if c.windows else None
  if "use_window" in family.uses:
    hf["use_sliding_window"] = bool(c.windows)
  if "layer_types" in family.uses and (c.windows or family.local_rope):
    hf["layer_types"] = [
      "full_attention" if w == EVERYWHERE else "sliding_attention"
      for w in c.windows or (EVERYWHERE,) * c.depth
    ]
  return hf


def _language_model(hf: dict, place: str) -> dict:
  """The config.json itself, or its text_config with the outer fields that it lacks."""
  kind = hf.get("model_type")
  if not isinstance(kind, str) or kind not in MULTIMODAL:
    return hf
  text = Fields(hf, {}, place).object("text_config")
  outer = ("eos_token_id", "bos_token_id", "pad_token_id", "quantization_config")
  given = {k: hf[k] for k in outer if hf.get(k) is not None}
  if kind == "mistral3" and "tie_word_embeddings" in hf:
    given["tie_word_embeddings"] = hf["tie_word_embeddings"]
  return dict(model_type=MULTIMODAL[kind]) | given | text


def reward(hf: dict) -> dict:
  """What a `config.json` of a model says where it is a reward model."""
  kind = hf["architectures"][0].replace("ForCausalLM", "ForSequenceClassification")
  labels = dict(id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})
  return dict(architectures=[kind], **labels)


def _known(family: Family) -> set[str]:
  """Fields that change the computation, and that the family's reader follows."""
  known = {*family.fields, *family.defaults, "partial_rotary_factor"}
  return known | ({"use_qk_norm"} if family.facts.get("qk_norm") else set())


def _read(f: Fields, name: str, default):
  """A field of a family, of the type of its default."""
  if isinstance(default, bool):
    return f.boolean(name)
  return f.integer(name) if isinstance(default, int) else f.positive(name)


def _activation(f: Fields) -> str:
  name = f.get("hidden_activation") or f.get("hidden_act", "silu")
  if f.values["model_type"] == "gemma" and name == "gelu":
    return "gelu_tanh"  # early Gemma configs say gelu but mean its tanh form
  if not isinstance(name, str) or name not in _ACTIVATIONS:
    raise unknown(f"activation in {f.place}", name, _ACTIVATIONS)
  return _ACTIVATIONS[name]


def _local(f: Fields, family: Family, depth: int) -> tuple[bool, ...]:
  """For each layer, whether it has a window."""
  no = (False,) * depth
  if "window" not in family.uses:
    return no
  if "use_window" in family.uses and not f.boolean("use_sliding_window"):
    return no
  given = f.values.get("sliding_window", family.defaults.get("sliding_window"))
  types = f.names("layer_types", depth)
  if types is None or "layer_types" not in family.uses:
    if given is None:
      return no
    local = family.local or (lambda i, f: True)
    return tuple(local(i, f) for i in range(depth))
  known = ("sliding_attention", "full_attention")
  for name in types:
    if name not in known:
      raise unknown(f"layer type in {f.place}", name, known)
  return tuple(name == "sliding_attention" for name in types)
