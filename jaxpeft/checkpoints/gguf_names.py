"""Architectures of GGUF files: one row for each, with its tensor names and its traits.

Sources: llama.cpp's conversion/*.py says how tensors are renamed and rearranged;
`gguf.get_tensor_name_map` has the names (the tests compare).
"""

import re
from typing import Any, NamedTuple

import numpy as np

from jaxpeft.checkpoints import gguf_file
from jaxpeft.errors import InputError, unknown

# llama.cpp's name in a block -> Hugging Face's in a layer, for most architectures.
_LAYER = {
  "attn_q": "self_attn.q_proj",
  "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj",
  "attn_output": "self_attn.o_proj",
  "attn_q_norm": "self_attn.q_norm",
  "attn_k_norm": "self_attn.k_norm",
  "ffn_gate": "mlp.gate_proj",
  "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj",
  "attn_norm": "input_layernorm",
  "ffn_norm": "post_attention_layernorm",
}
_POST_NORMS = {
  "post_attention_norm": "post_attention_layernorm",
  "post_ffw_norm": "post_feedforward_layernorm",
}
_GEMMA2 = _LAYER | _POST_NORMS | {"ffn_norm": "pre_feedforward_layernorm"}
_OLMO2 = {k: x for k, x in _LAYER.items() if k not in ("attn_norm", "ffn_norm")}
_OLMO2 |= _POST_NORMS
_FUSED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
# Experts are one tensor [experts, out, in] in GGUF, and one for each expert elsewhere.
_MIXTRAL = {
  "ffn_gate_inp": "block_sparse_moe.gate",
  "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
  "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
  "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
}
_QWEN_MOE = {
  "ffn_gate_inp": "mlp.gate",
  "ffn_gate_exps": "mlp.experts.{}.gate_proj",
  "ffn_down_exps": "mlp.experts.{}.down_proj",
  "ffn_up_exps": "mlp.experts.{}.up_proj",
}
_TOP = {
  "token_embd": "model.embed_tokens",
  "output_norm": "model.norm",
  "output": "lm_head",
}
# Tables of rotary frequencies: part of the config, not parameters.
ROPE_TENSORS = (
  "rope_freqs.weight",
  "rope_factors_long.weight",
  "rope_factors_short.weight",
)


class Architecture(NamedTuple):
  """What distinguishes an architecture of GGUF files.

  Attributes:
    family: Hugging Face's `model_type`.
    layer: {llama.cpp's name in a block: Hugging Face's in a layer}.
    interleaved: whether rows of q and k are stored in llama.cpp's interleaved rotary
      order, (0, N/2, 1, N/2 + 1, ...) in each head of N rows.
    norm_plus_one: whether norms are stored as 1 + w.
    activation: Hugging Face's name of it; metadata do not state it.
    facts: further fields of config.json that metadata do not state.
  """

  family: str
  layer: dict[str, str] = _LAYER
  interleaved: bool = False
  norm_plus_one: bool = False
  activation: str = "silu"
  facts: tuple[tuple[str, Any], ...] = ()


_GELU = "gelu_pytorch_tanh"
ARCHITECTURES = {
  "llama": Architecture("llama", interleaved=True),
  "qwen2": Architecture("qwen2"),
  "qwen3": Architecture("qwen3"),
  "gemma": Architecture("gemma", norm_plus_one=True, activation=_GELU),
  "gemma2": Architecture("gemma2", _GEMMA2, norm_plus_one=True, activation=_GELU),
  "gemma3": Architecture("gemma3_text", _GEMMA2, norm_plus_one=True, activation=_GELU),
  "phi3": Architecture("phi3", _LAYER | _FUSED),
  "olmo2": Architecture("olmo2", _OLMO2),
  "granite": Architecture("granite", interleaved=True),
  "smollm3": Architecture("smollm3", interleaved=True),
  "qwen3moe": Architecture(
    "qwen3_moe", _LAYER | _QWEN_MOE, facts=(("norm_topk_prob", True),)
  ),
}
# Variants that a file calls by another's name -> what tells them apart.
MIXTRAL = Architecture("mixtral", _LAYER | _MIXTRAL, interleaved=True)
OLMO3 = ARCHITECTURES["olmo2"]._replace(family="olmo3")


def of_file(meta: dict, place: str) -> tuple[str, Architecture]:
  """(name in the metadata, `Architecture`) of a file.

  Raises:
    InputError: the metadata have no architecture, or one that is not in the table.
  """
  name = gguf_file.value(meta, "general.architecture", str, place)
  if name not in ARCHITECTURES:
    raise unknown(f"general.architecture in {place}", name, ARCHITECTURES)
  if gguf_file.value(meta, "llama.expert_count", int, place) and name == "llama":
    return name, MIXTRAL
  window = "olmo2.attention.sliding_window"
  if name == "olmo2" and gguf_file.value(meta, window, int, place):
    return name, OLMO3
  return name, ARCHITECTURES[name]


def of_family(family: str) -> tuple[str, Architecture]:
  """(name in the metadata, `Architecture`) to write a family with.

  Raises:
    InputError: no architecture of the table stands for the family.
  """
  rows = {row.family: (name, row) for name, row in ARCHITECTURES.items()}
  rows |= {"mistral": rows["llama"], "mixtral": ("llama", MIXTRAL)}
  rows |= {"olmo3": ("olmo2", OLMO3)}
  if family not in rows:
    raise unknown("family for --format=gguf", family, rows)
  return rows[family]


def to_hf(name: str, row: Architecture) -> str | None:
  """Hugging Face's name of a tensor, with {} for an expert's number; None if unknown.

  Args:
    name: llama.cpp's, e.g. "blk.3.attn_q.weight".
    row: of the file.
  """
  stem, _, kind = name.rpartition(".")
  if stem in _TOP:
    return f"{_TOP[stem]}.{kind}"
  found = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
  if found is None or found[2] not in row.layer:
    return None
  return f"model.layers.{found[1]}.{row.layer[found[2]]}.{kind}"


def to_gguf(name: str, row: Architecture) -> tuple[str, int | None]:
  """(llama.cpp's name, number of the expert or None) of a tensor; inverts `to_hf`.

  Args:
    name: Hugging Face's.
    row: of the file to write.
  Raises:
    InputError: the architecture has no such tensor.
  """
  stem, _, kind = name.rpartition(".")
  top = {theirs: ours for ours, theirs in _TOP.items()}
  if stem in top:
    return f"{top[stem]}.{kind}", None
  found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
  if found:
    expert = re.search(r"(?<=experts\.)\d+", found[2])
    inside = re.sub(r"(?<=experts\.)\d+", "{}", found[2])
    for ours, theirs in row.layer.items():
      if theirs == inside:
        number = int(expert[0]) if expert else None
        return f"blk.{found[1]}.{ours}.{kind}", number
  raise InputError(f"GGUF's architecture of {row.family} has no tensor for {name}")


def interleaved_rows(heads: int, rows: int) -> np.ndarray:
  """int[rows]: where each row of Hugging Face's q or k lies in llama.cpp's order."""
  return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
