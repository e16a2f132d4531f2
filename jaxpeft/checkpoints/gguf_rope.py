"""Rotary embeddings in GGUF files: metadata, and tables that are stored as tensors."""

import math
from typing import Any

import numpy as np

from jaxpeft.checkpoints import gguf_file, gguf_names
from jaxpeft.errors import InputError, unknown
from jaxpeft.transformer.config import ModelConfig

_KINDS = ("none", "linear", "yarn", "longrope")
# Metadata key -> option of YaRN in config.json.
_YARN = {
  "rope.scaling.yarn_attn_factor": "attention_factor",
  "rope.scaling.attn_factor": "attention_factor",
  "rope.scaling.yarn_beta_fast": "beta_fast",
  "rope.scaling.yarn_beta_slow": "beta_slow",
}


def read(meta: dict, hf: dict, file: gguf_file.File) -> dict | None:
  """The field `rope_scaling` of a config.json.

  Args:
    meta: of the file, without the architecture's name in the keys.
    hf: the other fields.
    file: with the tables of frequencies.
  Raises:
    InputError: a kind of scaling that is not known.
  """
  old = meta.get("rope.scaling.original_context_length")
  factor = meta.get("rope.scaling.factor") or 1.0
  kind = meta.get("rope.scaling.type") or ("none" if factor == 1.0 else "linear")
  tables = {
    key: gguf_file.dequantize(file.tensors[key]).tolist()
    for key in gguf_names.ROPE_TENSORS
    if key in file.tensors
  }
  if "rope_factors_long.weight" in tables:
    return dict(
      rope_type="longrope",
      long_factor=tables["rope_factors_long.weight"],
      short_factor=tables.get("rope_factors_short.weight"),
      original_max_position_embeddings=old,
      factor=hf["max_position_embeddings"] / old if old else 1.0,
      attention_factor=meta.get("rope.scaling.attn_factor"),
    )
  if "rope_freqs.weight" in tables:
    if kind != "none":
      raise InputError(f"{file.place}: rope_freqs.weight and {kind} scaling together")
    count = meta.get("rope.dimension_count", hf["head_dim"]) // 2
    if file.tensors["rope_freqs.weight"].shape != (count,):
      raise InputError(f"{file.place}: rope_freqs.weight does not have {count} numbers")
    return _divisors(tables["rope_freqs.weight"], hf)
  if kind in ("none", "longrope"):
    return None
  if kind == "linear":
    return dict(rope_type="linear", factor=factor)
  if kind == "yarn":
    more = {field: meta[key] for key, field in _YARN.items() if key in meta}
    old = old or hf["max_position_embeddings"]
    return dict(
      rope_type="yarn", factor=factor, original_max_position_embeddings=old, **more
    )
  raise unknown(f"rope.scaling.type in {file.place}", kind, _KINDS)


def _divisors(found: list[float], hf: dict) -> dict:
  """Llama 3's options that give these divisors of the frequencies.

  The file holds the divisors only. If no options give them, they are handed on as they
  are, in the form of LongRoPE with one list for all lengths.
  """
  top, n = max(found), 2 * len(found)
  for old in (8192, *(2**i for i in range(4, 21))):
    options = dict(
      factor=round(top, 4),
      low_freq_factor=1.0,
      high_freq_factor=4.0,
      original_max_position_embeddings=old,
    )
    with np.errstate(all="ignore"):  # bad values are refused later
      made = llama3_divisors(options, hf["rope_theta"], n)
    if np.allclose(made, found, rtol=1e-5, atol=0):
      return dict(rope_type="llama3", **options)
  return dict(
    rope_type="longrope",
    long_factor=found,
    short_factor=found,
    attention_factor=1.0,
    factor=1.0,
    original_max_position_embeddings=hf["max_position_embeddings"],
  )


def llama3_divisors(options: dict, theta: float, n: int) -> np.ndarray:
  """float32[n / 2]: what Llama 3's scaling divides each rotary frequency by.

  Args:
    options: of the rope_type "llama3".
    theta: base of the frequencies.
    n: rotated elements of a head.
  """
  low, high = options["low_freq_factor"], options["high_freq_factor"]
  power = np.arange(0, n, 2, dtype=np.float32) / np.float32(n)
  freq = (1.0 / np.float32(theta) ** power).astype(np.float64)
  turns = options["original_max_position_embeddings"] * freq / (2 * math.pi)
  smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
  return (1.0 / ((1 - smooth) / options["factor"] + smooth)).astype(np.float32)


def write(c: ModelConfig) -> dict[str, Any]:
  """Metadata of a model's rotary embedding, without the architecture's name."""
  first = c.ropes[0]
  found: dict[str, Any] = {
    "rope.dimension_count": int(c.head_dim * first.share),
    "rope.freq_base": float(first.theta),
  }
  options = dict(first.options)
  if first.kind in ("linear", "yarn", "longrope"):
    found["rope.scaling.type"] = first.kind
  if first.kind in ("linear", "yarn"):
    found["rope.scaling.factor"] = float(options["factor"])
  if first.kind in ("yarn", "longrope"):
    old = options["original_max_position_embeddings"]
    found["rope.scaling.original_context_length"] = int(old)
  if first.kind == "yarn":
    for key, option in _YARN.items():
      if options.get(option) is not None and key != "rope.scaling.attn_factor":
        found[key] = float(options[option])
  if first.kind == "longrope" and options.get("attention_factor") is not None:
    found["rope.scaling.attn_factor"] = float(options["attention_factor"])
  if c.family == "gemma3_text":
    found["rope.freq_base_swa"] = float(c.ropes[-1].theta)
  return found


def tables(c: ModelConfig) -> dict[str, np.ndarray]:
  """The tensors of rotary frequencies that a model's scaling needs, float32."""
  rope = c.ropes[0]
  options, n = dict(rope.options), int(c.head_dim * rope.share)
  if rope.kind == "llama3":
    return {"rope_freqs.weight": llama3_divisors(options, rope.theta, n)}
  if rope.kind == "longrope":
    return {
      f"rope_factors_{word}.weight": np.array(options[f"{word}_factor"], np.float32)
      for word in ("long", "short")
    }
  return {}
