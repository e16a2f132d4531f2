"""The fields of a Hugging Face `config.json`: typed reading, and which ones matter.

A field that changes the computation in a way that the model cannot follow is an error.
A field that nobody here knows is reported in one line, and otherwise ignored: if it
announces other weights, reading the weights fails.
"""

import math
from typing import Any

from jaxpeft import console
from jaxpeft.errors import InputError

_LIMIT = 2**31 - 1
# Fields that change the computation, with the values that do not (besides null, false,
# 0 and empty). A family that understands one lists it in `Family.fields`, or reads it.
_MUST_BE: dict[str, tuple] = {
  **dict.fromkeys(
    """add_cross_attention alibi apply_residual_connection_post_layernorm
    attn_logit_softcapping clip_qkv dual_chunk_attention_config
    final_logit_softcapping is_encoder_decoder kv_lora_rank layernorm_epsilon
    moe_num_experts moe_topk n_routed_experts n_shared_experts no_rope_layers
    num_experts num_local_experts parallel_attn quantization q_lora_rank qk_layernorm
    qk_layernorms query_pre_attn_scalar rope_interleaved
    shared_expert_intermediate_size use_bidirectional_attention use_parallel_residual
    use_qk_norm""".split(),
    (),
  ),
  "attention_multiplier": (1,),
  "decoder_sparse_step": (1,),
  "embedding_multiplier": (1,),
  "logits_scaling": (1,),
  "logit_scale": (1,),
  "is_causal": (True,),
  "mlp_only_layers": (),
  "no_rope_layer_interval": (),
  "partial_rotary_factor": (1,),
  "residual_multiplier": (1,),
  "rotary_pct": (1,),
}
# Fields that are read elsewhere, or that change nothing that is computed here.
_IRRELEVANT = frozenset(
  """_name_or_path architectures model_type torch_dtype dtype transformers_version
  initializer_range use_cache pretraining_tp pad_token_id bos_token_id eos_token_id
  sep_token_id cls_token_id decoder_start_token_id tokenizer_class max_window_layers
  use_sliding_window layer_types sliding_window_pattern _sliding_window_pattern
  cache_implementation hidden_act hidden_activation
  hidden_size intermediate_size num_attention_heads num_hidden_layers
  num_key_value_heads head_dim vocab_size max_position_embeddings
  original_max_position_embeddings rms_norm_eps rope_theta rope_scaling
  rope_parameters rope_local_base_freq tie_word_embeddings attention_bias mlp_bias
  sliding_window attention_dropout hidden_dropout resid_pdrop embd_pdrop attn_pdrop
  hidden_dropout_prob attention_probs_dropout_prob
  return_dict output_hidden_states output_attentions output_router_logits
  router_aux_loss_coef router_jitter_noise use_return_dict use_bfloat16
  torchscript chunk_size_feed_forward problem_type quantization_config
  id2label label2id task_specific_params model_max_length unsloth_version
  unsloth_fixed unsloth_torch_dtype max_length min_length do_sample early_stopping
  num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p
  repetition_penalty length_penalty no_repeat_ngram_size
  encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores
  return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values
  exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
  tie_encoder_decoder cross_attention_hidden_size is_decoder prefix pruned_heads
  finetuning_task tf_legacy_loss _attn_implementation _attn_implementation_autoset
  _attn_implementation_internal _experts_implementation _flash_attn_2_enabled
  use_flash_attn attn_implementation _commit_hash _diffusers_version
  is_llama_config transformers.js_config transformers_weights neftune_noise_alpha
  max_sequence_length sliding_window_size auto_map text_config vision_config
  image_token_index boi_token_index eoi_token_index mm_tokens_per_image
  image_token_id boi_token_id eoi_token_id spatial_merge_size vision_feature_layer
  multimodal_projector_bias projector_hidden_act base_model_tp_plan
  base_model_pp_plan""".split()
)
_reported: set[str] = set()


def check(hf: dict, known, place: str):
  """Refuses fields that change the computation, and reports unknown ones.

  Args:
    hf: the config.json.
    known: names of further fields that its family understands.
    place: its path, for messages.
  Raises:
    InputError: a field has a value that cannot be followed.
  """
  strange = []
  for name, value in hf.items():
    if name in known or name in _IRRELEVANT:
      continue
    if name == "is_causal" and value is False:
      raise InputError(f"{place}: the model is not causal (field 'is_causal')")
    if not value:
      continue
    if name not in _MUST_BE:
      strange.append(name)
    elif value not in _MUST_BE[name]:
      raise InputError(
        f"{place}: field {name!r} = {_short(value)} is not supported: it changes what "
        "the model computes"
      )
  line = f"{place}: ignored unknown fields: {', '.join(map(_short, strange))}"
  if strange and line not in _reported:
    _reported.add(line)
    console.note(line)


class Fields:
  """Typed access to a JSON object. A null field counts as missing.

  Every method raises InputError for a value of another type, or if the field is missing
  and has no default.
  """

  def __init__(self, values: dict, defaults: dict, place: str):
    self.values, self.place = values, place
    self.defaults = defaults

  def get(self, name: str, default: Any = None):
    """The value as it is; else the family's default; else `default`."""
    value = self.values.get(name)
    value = self.defaults.get(name) if value is None else value
    return default if value is None else value

  def integer(self, name: str, default: int | None = None) -> int:
    """A whole number from 1 to 2^31 - 1, also if written as 4.0."""
    value = self._needed(name, default)
    if not is_number(value) or value != int(value) or not 1 <= value <= _LIMIT:
      raise self._wrong(name, value, f"a whole number from 1 to {_LIMIT}")
    return int(value)

  def number(self, name: str, default: float | None = None) -> float:
    """A finite number."""
    value = self._needed(name, default)
    if not is_number(value):
      raise self._wrong(name, value, "a number")
    return float(value)

  def positive(self, name: str, default: float | None = None) -> float:
    """A finite number above 0."""
    value = self.number(name, default)
    if value <= 0:
      raise self._wrong(name, value, "above 0")
    return value

  def boolean(self, name: str, default: bool = False) -> bool:
    """True or false."""
    value = self.get(name, default)
    if value not in (True, False):
      raise self._wrong(name, value, "true or false")
    return bool(value)

  def ids(self, name: str) -> tuple[int, ...]:
    """Token ids from a number or a list; () if missing."""
    value = self.get(name, [])
    value = value if isinstance(value, list) else [value]
    for x in value:
      if not is_number(x) or x != int(x) or not -_LIMIT <= x <= _LIMIT:
        raise self._wrong(name, value, "a token id or a list of token ids")
    return tuple(int(x) for x in value if x >= 0)  # some models write -1 for none

  def id(self, name: str) -> int | None:
    """One token id, or None."""
    found = self.ids(name)
    return found[0] if found else None

  def names(self, name: str, count: int) -> list | None:
    """A list of at least `count` values, cut to that; None if missing."""
    value = self.get(name)
    if value is not None and (not isinstance(value, list) or len(value) < count):
      raise self._wrong(name, value, f"a list of {count} values, one for each layer")
    return value and value[:count]

  def object(self, name: str) -> dict:
    """A JSON object; {} if missing."""
    value = self.get(name, {})
    if not isinstance(value, dict):
      raise self._wrong(name, value, "a JSON object")
    return value

  def _needed(self, name: str, default):
    value = self.get(name, default)
    if value is None:
      raise InputError(f"{self.place}: field {name!r} is missing")
    return value

  def _wrong(self, name: str, value, what: str) -> InputError:
    return InputError(f"{self.place}: field {name!r} is {_short(value)}, not {what}")


def is_number(value) -> bool:
  """Whether a JSON value is a finite number of a size that arrays can hold."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return False
  return abs(value) < 2**63 if isinstance(value, int) else math.isfinite(value)


def _short(value) -> str:
  """A value for a message, without its tail if it is long."""
  text = value if isinstance(value, str) else _repr(value)
  text = text if len(text) < 60 else text[:57] + "..."
  return repr(text) if isinstance(value, str) else text


def _repr(value) -> str:
  if isinstance(value, int) and abs(value) > 10**30:
    return "a huge number"  # repr of 5,000 digits is refused by Python
  try:
    return repr(value)
  except (ValueError, RecursionError):
    return f"a {type(value).__name__}"
