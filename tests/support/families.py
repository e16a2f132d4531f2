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
  "mistral": ("Mistral", dict(sliding_window=7, head_dim=16)),
  "qwen2": ("Qwen2", {}),
  "qwen2-window": (
    "Qwen2",
    dict(use_sliding_window=True, sliding_window=5, max_window_layers=1),
  ),
  "qwen3": ("Qwen3", dict(head_dim=16)),
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


def make(name: str, seed: int = 0):
  """A random float32 model with eager attention; biases and norms are random too."""
  family, changes = FAMILIES[name]
  config = getattr(transformers, f"{family}Config")(**_SMALL | changes)
  config._attn_implementation = "eager"
  torch.manual_seed(seed)
  model = getattr(transformers, f"{family}ForCausalLM")(config).eval().float()
  with torch.no_grad():
    for p in model.parameters():
      scale = 0.3 if p.ndim == 1 else 1.5 / np.sqrt(p.shape[-1])
      p.copy_(torch.randn_like(p) * scale + (p.ndim == 1 and p.mean() > 0.5))
  return model


def save(name: str, directory: pathlib.Path, seed: int = 0, **kwargs):
  """The model, written to a directory with the embedded tokenizer's files."""
  from jaxpeft import assets
  from jaxpeft.data import tokenizer

  model = make(name, seed)
  model.save_pretrained(directory, **kwargs)
  for file in tokenizer.FILES:
    source = assets.TINY / file
    if source.exists() and not (directory / file).exists():
      (directory / file).write_bytes(source.read_bytes())
  return model
