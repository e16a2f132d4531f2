"""Tiny random models of every family, made by transformers: the oracle of the tests."""

import pathlib

import numpy as np
import torch
import transformers

_SMALL = dict(
  vocab_size=97,
  hidden_size=48,
  intermediate_size=80,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=256,
  bos_token_id=1,
  eos_token_id=2,
  pad_token_id=0,
)
_LLAMA3 = dict(
  rope_type="llama3",
  rope_theta=10_000.0,
  factor=8.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_position_embeddings=32,
)

_YARN = dict(
  rope_type="yarn", rope_theta=10_000.0, factor=4.0, original_max_position_embeddings=32
)
_TWO_ROPES = dict(
  full_attention=dict(rope_type="linear", rope_theta=50_000.0, factor=4.0),
  sliding_attention=dict(rope_type="default", rope_theta=1_000.0),
)
_LONG = dict(
  rope_type="longrope",
  rope_theta=10_000.0,
  short_factor=[1.0, 1.1, 1.2, 1.3],
  long_factor=[1.5, 2.0, 3.0, 5.0],
)
_EXPERTS = dict(num_experts_per_tok=2, intermediate_size=24)

FAMILIES = {
  "llama": ("Llama", {}),
  "llama-tied-bias": (
    "Llama",
    dict(tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
  ),
  "llama3": ("Llama", dict(rope_parameters=_LLAMA3)),
  "llama-linear": (
    "Llama",
    dict(rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=4.0)),
  ),
  "llama-yarn": ("Llama", dict(rope_parameters=_YARN)),
  "llama-yarn-scaled": (
    "Llama",
    dict(
      rope_parameters=_YARN
      | dict(mscale=1.0, mscale_all_dim=0.7, beta_fast=8.0, truncate=False)
    ),
  ),
  "llama-dynamic": (
    "Llama",
    dict(
      rope_parameters=dict(rope_type="dynamic", rope_theta=1e4, factor=4.0),
      max_position_embeddings=32,
    ),
  ),
  "mistral": ("Mistral", dict(sliding_window=7, head_dim=16)),
  "ministral": (
    "Ministral",
    dict(
      head_dim=16,
      sliding_window=5,
      layer_types=["full_attention", "sliding_attention", "full_attention"],
    ),
  ),
  "ministral3": (
    "Ministral3",
    dict(
      head_dim=16,
      rope_parameters=_YARN
      | dict(llama_4_scaling_beta=0.3, original_max_position_embeddings=16),
    ),
  ),
  "qwen2": ("Qwen2", {}),
  "qwen2-window": (
    "Qwen2",
    dict(use_sliding_window=True, sliding_window=5, max_window_layers=1),
  ),
  "qwen3": ("Qwen3", dict(head_dim=16)),
  "qwen3-moe": (
    "Qwen3Moe",
    _EXPERTS
    | dict(head_dim=16, num_experts=8, moe_intermediate_size=24, norm_topk_prob=True),
  ),
  "mixtral": ("Mixtral", _EXPERTS | dict(num_local_experts=4)),
  "phi3": ("Phi3", dict(sliding_window=9)),
  "phi3-long": (
    "Phi3",
    dict(
      rope_parameters=_LONG | dict(partial_rotary_factor=0.67),
      original_max_position_embeddings=32,
      num_attention_heads=4,
      hidden_size=48,
    ),
  ),
  "olmo2": ("Olmo2", {}),
  "olmo3": (
    "Olmo3",
    dict(
      sliding_window=5,
      rope_parameters=dict(
        full_attention=_YARN,
        sliding_attention=dict(rope_type="default", rope_theta=1e4),
      ),
      layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
  ),
  "granite": (
    "Granite",
    dict(
      embedding_multiplier=3.0,
      logits_scaling=2.0,
      residual_multiplier=0.4,
      attention_multiplier=0.2,
      tie_word_embeddings=True,
    ),
  ),
  "smollm3": ("SmolLM3", dict(no_rope_layers=[1, 0, 1], tie_word_embeddings=True)),
  "gemma3": (
    "Gemma3",
    dict(
      head_dim=16,
      sliding_window=5,
      query_pre_attn_scalar=24,
      final_logit_softcapping=4.0,
      rope_parameters=_TWO_ROPES,
      layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    ),
  ),
  "gemma": ("Gemma", dict(head_dim=16, num_key_value_heads=1)),
  "gemma2": (
    "Gemma2",
    dict(
      head_dim=16,
      sliding_window=5,
      query_pre_attn_scalar=24,
      attn_logit_softcapping=3.0,
      final_logit_softcapping=4.0,
    ),
  ),
}


# One of each family, for tests that need no variants.
ROWS = (
  "llama mistral ministral ministral3 qwen2 qwen3 qwen3-moe mixtral gemma gemma2 "
  "gemma3 phi3 olmo2 olmo3 granite smollm3"
).split()


def make(name: str, seed: int = 0, sizes: dict | None = None):
  """A random float32 model with eager attention; biases and norms are random too.

  Args:
    name: a key of `FAMILIES`.
    seed: of the weights.
    sizes: fields of the config to change.
  """
  family, changes = FAMILIES[name]
  kind = {"Gemma3": "Gemma3Text"}.get(family, family)
  config = getattr(transformers, f"{kind}Config")(**_SMALL | changes | (sizes or {}))
  config._attn_implementation = "eager"
  torch.manual_seed(seed)
  model = getattr(transformers, f"{family}ForCausalLM")(config).eval().float()
  with torch.no_grad():
    for p in model.parameters():
      scale = 0.3 if p.ndim == 1 else 1.5 / np.sqrt(p.shape[-1])
      p.copy_(torch.randn_like(p) * scale + (p.ndim == 1 and p.mean() > 0.5))
  return model


def save(name: str, directory: pathlib.Path, seed: int = 0, sizes=None, **kwargs):
  """The model, written to a directory with the embedded tokenizer's files."""
  from jaxpeft import assets
  from jaxpeft.data import tokenizer

  model = make(name, seed, sizes)
  model.save_pretrained(directory, **kwargs)
  for file in tokenizer.FILES:
    source = assets.TINY / file
    if source.exists() and not (directory / file).exists():
      (directory / file).write_bytes(source.read_bytes())
  return model
