"""Architectures of the models in the papers, for use without their weights.

`model.source=init:NAME` builds one with random weights; planning and parameter counts
need no more. Sources: the models' public config.json files.
"""

import math

from jaxpeft.transformer.config import ModelConfig, Rope

_LLAMA = dict(rms_eps=1e-5, bos_id=1, eos_ids=(2,))
_LLAMA3 = _LLAMA | dict(
  vocab_size=128_256, ropes=(Rope(500_000.0),), bos_id=128_000, eos_ids=(128_001,)
)
_LLAMA32 = _LLAMA3 | dict(
  max_positions=131_072,
  tied=True,
  ropes=(
    Rope(
      500_000.0,
      "llama3",
      (
        ("factor", 32.0),
        ("high_freq_factor", 4.0),
        ("low_freq_factor", 1.0),
        ("original_max_position_embeddings", 8192),
      ),
    ),
  ),
)
_GEMMA = dict(
  vocab_size=256_000,
  max_positions=8192,
  head_dim=256,
  activation="gelu_tanh",
  tied=True,
  norm_offset=1.0,
  bos_id=2,
  eos_ids=(1,),
  pad_id=0,
)
_QWEN = dict(ropes=(Rope(1_000_000.0),), bos_id=151_643, eos_ids=(151_643,))


def _shape(family, width, depth, heads, kv_heads, ff, **facts) -> ModelConfig:
  facts = dict(head_dim=width // heads) | facts
  if family == "gemma":
    facts |= dict(embed_scale=math.sqrt(width))
  return ModelConfig(
    family=family,
    width=width,
    depth=depth,
    heads=heads,
    kv_heads=kv_heads,
    ff=ff,
    **facts,
  )


SHAPES = {
  "tiny": _shape(
    "llama",
    128,
    4,
    4,
    4,
    384,
    vocab_size=512,
    max_positions=1024,
    tied=True,
    bos_id=1,
    eos_ids=(2,),
    pad_id=0,
  ),
  "gemma-2b": _shape("gemma", 2048, 18, 8, 1, 16_384, **_GEMMA),
  "gemma-7b": _shape("gemma", 3072, 28, 16, 16, 24_576, **_GEMMA),
  "mistral-7b": _shape(
    "mistral",
    4096,
    32,
    32,
    8,
    14_336,
    vocab_size=32_000,
    max_positions=32_768,
    windows=(4096,) * 32,
    **_LLAMA,
  ),
  "llama2-7b": _shape(
    "llama", 4096, 32, 32, 32, 11_008, vocab_size=32_000, max_positions=4096, **_LLAMA
  ),
  "llama2-13b": _shape(
    "llama", 5120, 40, 40, 40, 13_824, vocab_size=32_000, max_positions=4096, **_LLAMA
  ),
  "llama2-70b": _shape(
    "llama", 8192, 80, 64, 8, 28_672, vocab_size=32_000, max_positions=4096, **_LLAMA
  ),
  "llama3-8b": _shape("llama", 4096, 32, 32, 8, 14_336, max_positions=8192, **_LLAMA3),
  "llama3.2-1b": _shape("llama", 2048, 16, 32, 8, 8192, **_LLAMA32),
  "llama3.2-3b": _shape("llama", 3072, 28, 24, 8, 8192, **_LLAMA32),
  "qwen2.5-0.5b": _shape(
    "qwen2",
    896,
    24,
    14,
    2,
    4864,
    vocab_size=151_936,
    max_positions=32_768,
    qkv_bias=True,
    tied=True,
    **_QWEN,
  ),
  "qwen2.5-7b": _shape(
    "qwen2",
    3584,
    28,
    28,
    4,
    18_944,
    vocab_size=152_064,
    max_positions=131_072,
    qkv_bias=True,
    **_QWEN,
  ),
  "qwen3-0.6b": _shape(
    "qwen3",
    1024,
    28,
    16,
    8,
    3072,
    vocab_size=151_936,
    max_positions=40_960,
    head_dim=128,
    qk_norm="head",
    tied=True,
    **_QWEN,
  ),
}
