"""Converts between Hugging Face's `config.json` and `ModelConfig`.

A field that could change the result and is not handled here is an error.
"""

from jaxpeft.checkpoints import bnb
from jaxpeft.errors import InputError, unknown
from jaxpeft.transformer.attention import EVERYWHERE
from jaxpeft.transformer.config import ModelConfig

# Facts about a family that its config.json does not state.
FAMILIES = {
  "llama": {},
  "mistral": {},
  "qwen2": dict(qkv_bias=True),
  "qwen3": dict(qk_norm=True),
  "gemma": dict(norm_offset=1.0, embed_scale=True, tied=True),
  "gemma2": dict(norm_offset=1.0, embed_scale=True, tied=True, post_norms=True),
}
_ACTIVATIONS = {
  "silu": "silu",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_new": "gelu_tanh",
}
# Fields that are read below, or that do not change what the model computes.
_IRRELEVANT = frozenset(
  """_name_or_path architectures model_type torch_dtype dtype transformers_version
  initializer_range use_cache pretraining_tp pad_token_id bos_token_id eos_token_id
  tokenizer_class max_window_layers use_sliding_window layer_types cache_implementation
  hidden_act hidden_activation hidden_size intermediate_size num_attention_heads
  num_hidden_layers num_key_value_heads head_dim vocab_size max_position_embeddings
  rms_norm_eps rope_theta rope_scaling rope_parameters tie_word_embeddings
  attention_bias mlp_bias sliding_window query_pre_attn_scalar attention_dropout
  attn_logit_softcapping final_logit_softcapping rope_interleaved return_dict
  output_hidden_states output_attentions torchscript is_encoder_decoder
  chunk_size_feed_forward problem_type
  quantization_config
  id2label label2id task_specific_params model_max_length unsloth_version unsloth_fixed
  """.split()
)


def from_hf(hf: dict, place: str = "config.json") -> ModelConfig:
  """The `ModelConfig` of a `config.json` that transformers 4 or 5 wrote.

  Args:
    hf: the JSON object.
    place: its path, for error messages.
  Raises:
    InputError: a model_type, field or value is not supported; the message names it.
  """
  if not isinstance(hf, dict):
    raise InputError(f"{place} holds no JSON object")
  family = hf.get("model_type")
  if family not in FAMILIES:
    raise unknown(f"model_type in {place}", family, FAMILIES)
  quantized = hf.get("quantization_config")
  if quantized:
    bnb.check_config(quantized, place)
  for field, value in hf.items():
    if field not in _IRRELEVANT and value not in (None, False, 0, 0.0):
      raise InputError(f"{place}: field {field!r} = {value!r} is not supported")
  try:
    heads = hf["num_attention_heads"]
    bias = bool(hf.get("attention_bias", False))
    facts = dict(
      vocab_size=hf["vocab_size"],
      width=hf["hidden_size"],
      depth=hf["num_hidden_layers"],
      heads=heads,
      kv_heads=hf.get("num_key_value_heads") or heads,
      head_dim=hf.get("head_dim") or hf["hidden_size"] // heads,
      ff=hf["intermediate_size"],
      max_positions=hf["max_position_embeddings"],
      rms_eps=hf.get("rms_norm_eps", 1e-6),
      tied=hf.get("tie_word_embeddings", FAMILIES[family].get("tied", False)),
      activation=_activation(hf, place),
      qkv_bias=FAMILIES[family].get("qkv_bias", bias),
      o_bias=bias,
      mlp_bias=bool(hf.get("mlp_bias", False)),
      bos_id=hf.get("bos_token_id"),
      eos_ids=_ids(hf.get("eos_token_id")),
      pad_id=hf.get("pad_token_id"),
    )
  except KeyError as e:
    raise InputError(f"{place}: field {e} is missing") from e
  if family == "gemma2":
    facts |= dict(
      query_scale=hf.get("query_pre_attn_scalar", 256) ** -0.5,
      attn_softcap=hf.get("attn_logit_softcapping", 50.0),
      final_softcap=hf.get("final_logit_softcapping", 30.0),
    )
  facts |= _rope(hf, place) | dict(windows=_windows(hf, family, place))
  try:
    return ModelConfig(**{"family": family} | FAMILIES[family] | facts)
  except ValueError as e:
    raise InputError(f"{place}: {e}") from e


def to_hf(c: ModelConfig, dtype: str) -> dict:
  """A `config.json` that transformers can read; the inverse of `from_hf`.

  Args:
    c: config of the model.
    dtype: of the saved weights, e.g. "bfloat16".
  """
  names = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma": "Gemma",
    "gemma2": "Gemma2",
  }
  activation = {v: k for k, v in reversed(_ACTIVATIONS.items())}[c.activation]
  hf = dict(
    architectures=[f"{names[c.family]}ForCausalLM"],
    model_type=c.family,
    dtype=dtype,
    vocab_size=c.vocab_size,
    hidden_size=c.width,
    num_hidden_layers=c.depth,
    num_attention_heads=c.heads,
    num_key_value_heads=c.kv_heads,
    head_dim=c.head_dim,
    intermediate_size=c.ff,
    max_position_embeddings=c.max_positions,
    rms_norm_eps=c.rms_eps,
    rope_theta=c.rope_theta,
    rope_scaling=dict(c.rope_scaling) or None,
    tie_word_embeddings=c.tied,
    hidden_act=activation,
    bos_token_id=c.bos_id,
    eos_token_id=list(c.eos_ids) if len(c.eos_ids) > 1 else (*c.eos_ids, None)[0],
    pad_token_id=c.pad_id,
  )
  if c.family != "mistral" and c.family != "qwen2":
    hf["attention_bias"] = c.o_bias
  if c.family == "llama":
    hf["mlp_bias"] = c.mlp_bias
  if c.family == "gemma2":
    hf |= dict(
      hidden_activation=activation,
      query_pre_attn_scalar=round((c.query_scale or c.head_dim**-0.5) ** -2),
      attn_logit_softcapping=c.attn_softcap,
      final_logit_softcapping=c.final_softcap,
    )
  if c.family in ("mistral", "gemma2", "qwen2", "qwen3"):
    hf["sliding_window"] = min(c.windows) if c.windows else None
  if c.family in ("qwen2", "qwen3"):
    hf["use_sliding_window"] = bool(c.windows)
  if c.windows and c.family != "mistral":
    hf["layer_types"] = [
      "full_attention" if w == EVERYWHERE else "sliding_attention" for w in c.windows
    ]
  return hf


def _activation(hf: dict, place: str) -> str:
  name = hf.get("hidden_activation") or hf.get("hidden_act", "silu")
  if hf["model_type"] == "gemma" and name == "gelu":
    return "gelu_tanh"  # early Gemma configs say gelu but mean its tanh form
  if name not in _ACTIVATIONS:
    raise unknown(f"activation in {place}", name, _ACTIVATIONS)
  return _ACTIVATIONS[name]


def _rope(hf: dict, place: str) -> dict:
  """rope_theta and rope_scaling, from the fields of transformers 4 or 5."""
  rope = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
  theta = rope.pop("rope_theta", hf.get("rope_theta", 10_000.0))
  kind = rope.pop("rope_type", rope.pop("type", "default"))
  rope.pop("type", None)
  needed = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
      "factor",
      "low_freq_factor",
      "high_freq_factor",
      "original_max_position_embeddings",
    ),
  }
  if kind not in needed:
    raise unknown(f"rope_type in {place}", kind, needed)
  if set(rope) != set(needed[kind]):
    raise InputError(
      f"{place}: rope_type {kind!r} needs {list(needed[kind])} but has {sorted(rope)}"
    )
  scaling = (("rope_type", kind), *sorted(rope.items())) if rope else ()
  return dict(rope_theta=float(theta), rope_scaling=scaling)


def _windows(hf: dict, family: str, place: str) -> tuple[int, ...]:
  """The attention window of each layer in tokens; () if no layer has a window."""
  depth, window = hf["num_hidden_layers"], hf.get("sliding_window")
  if family in ("qwen2", "qwen3") and not hf.get("use_sliding_window", False):
    return ()
  if family == "gemma2" and "sliding_window" not in hf:
    window = 4096
  if window is None or family in ("llama", "gemma"):
    return ()
  types = hf.get("layer_types")
  if types is None:
    first = hf.get("max_window_layers", 28) if family.startswith("qwen") else 0
    local = (lambda i: i % 2 == 0) if family == "gemma2" else (lambda i: i >= first)
    types = [
      "sliding_attention" if local(i) else "full_attention" for i in range(depth)
    ]
  known = {"sliding_attention": window, "full_attention": EVERYWHERE}
  for name in types:
    if name not in known:
      raise unknown(f"layer type in {place}", name, known)
  if set(types) == {"full_attention"}:
    return ()
  return tuple(known[name] for name in types)


def _ids(value) -> tuple[int, ...]:
  return () if value is None else (value,) if isinstance(value, int) else tuple(value)
