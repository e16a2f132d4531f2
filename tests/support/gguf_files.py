"""GGUF files of tiny transformers models, written as llama.cpp's converter does.

Names come from the `gguf` package's map and keys from its writer, so that nothing here
is shared with the code under test.
"""

import gguf
import numpy as np
import torch

from tests.support import families

# Family of tests/support/families.py -> (architecture, what must be as GGUF has it).
# GGUF has no window for Mistral; it does not hold the scale of Gemma's queries, which
# is that of head_dim, nor which layers of Gemma 3 and SmolLM3 differ from the others.
ARCHITECTURES = {
  "llama": ("llama", {}),
  "llama-tied-bias": ("llama", {}),
  "llama3": ("llama", {}),
  "llama-linear": ("llama", {}),
  "llama-yarn": ("llama", {}),
  "mistral": ("llama", dict(sliding_window=None)),
  "mixtral": ("llama", dict(sliding_window=None)),
  "qwen2": ("qwen2", {}),
  "qwen3": ("qwen3", {}),
  "qwen3-moe": ("qwen3moe", {}),
  "gemma": ("gemma", {}),
  "gemma2": ("gemma2", dict(query_pre_attn_scalar=16)),
  "gemma3": (
    "gemma3",
    dict(
      query_pre_attn_scalar=16,
      num_hidden_layers=7,
      layer_types=["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
    ),
  ),
  "phi3": ("phi3", {}),
  "phi3-long": (
    "phi3",
    dict(
      hidden_size=64,
      rope_parameters=families._LONG | dict(partial_rotary_factor=0.5),
    ),
  ),
  "olmo2": ("olmo2", {}),
  "olmo3": ("olmo2", {}),
  "granite": ("granite", {}),
  "smollm3": ("smollm3", dict(num_hidden_layers=4, no_rope_layers=[1, 1, 1, 0])),
}
_PERMUTED = ("llama", "granite", "smollm3")


def make(name: str, **more):
  """A tiny transformers model of a family that a GGUF file can hold.

  `more` are further fields of its config.
  """
  kind, changes = families.FAMILIES[name]
  families.FAMILIES["gguf"] = (kind, changes | ARCHITECTURES[name][1] | more)
  try:
    return families.make("gguf")
  finally:
    del families.FAMILIES["gguf"]


def write(model, name: str, path, kind="F32", vocabulary=None):
  """Writes a model as a GGUF file.

  Args:
    model: from `make`.
    name: of its family.
    path: of the file.
    kind: block format of the matrices.
    vocabulary: writer -> None, adds the tokenizer; None adds a byte-level one.
  """
  arch = ARCHITECTURES[name][0]
  c = model.config
  writer = gguf.GGUFWriter(path, arch)
  _metadata(writer, c, arch)
  (vocabulary or byte_level)(writer, c.vocab_size)
  number = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == arch)
  names = gguf.get_tensor_name_map(number, c.num_hidden_layers)
  for theirs, tensor in model.state_dict().items():
    if theirs == "lm_head.weight" and c.tie_word_embeddings:
      continue
    w = tensor.numpy()
    if theirs.endswith("experts.gate_up_proj"):
      layer = theirs.split(".")[2]
      gate, up = np.split(w, 2, axis=1)
      _add(writer, f"blk.{layer}.ffn_gate_exps.weight", gate, kind)
      _add(writer, f"blk.{layer}.ffn_up_exps.weight", up, kind)
      continue
    if theirs.endswith("experts.down_proj"):
      _add(writer, f"blk.{theirs.split('.')[2]}.ffn_down_exps.weight", w, kind)
      continue
    stem, _, suffix = theirs.rpartition(".")
    if arch in _PERMUTED and stem.endswith(("q_proj", "k_proj")):
      q = stem.endswith("q_proj")
      w = _permute(w, c.num_attention_heads if q else c.num_key_value_heads)
    if arch.startswith("gemma") and theirs.endswith("norm.weight"):
      w = w + 1
    ours = names.get_name(stem)
    assert ours, theirs
    _add(writer, f"{ours}.{suffix}", w, kind)
  _rope_tensors(writer, model)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def _add(writer, name, w, kind):
  kind = gguf.GGMLQuantizationType[kind if w.ndim > 1 else "F32"]
  writer.add_tensor(
    name, gguf.quants.quantize(np.ascontiguousarray(w), kind), raw_dtype=kind
  )


def _permute(w, heads):
  """From llama.cpp's conversion/llama.py."""
  return w.reshape(heads, 2, -1, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def _metadata(writer, c, arch):
  writer.add_block_count(c.num_hidden_layers)
  writer.add_context_length(c.max_position_embeddings)
  writer.add_embedding_length(c.hidden_size)
  writer.add_feed_forward_length(c.intermediate_size)
  writer.add_head_count(c.num_attention_heads)
  writer.add_head_count_kv(c.num_key_value_heads)
  writer.add_layer_norm_rms_eps(c.rms_norm_eps)
  if getattr(c, "head_dim", None):
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
  rope = c.rope_parameters
  wide = rope.get("full_attention", rope)
  writer.add_rope_freq_base(wide["rope_theta"])
  if "sliding_attention" in rope and arch == "gemma3":
    near = rope["sliding_attention"]["rope_theta"]
    writer.add_float32("gemma3.rope.freq_base_swa", near)
  if wide["rope_type"] in ("linear", "yarn"):
    writer.add_rope_scaling_type(gguf.RopeScalingType(wide["rope_type"]))
    writer.add_rope_scaling_factor(wide["factor"])
  if wide["rope_type"] in ("yarn", "longrope"):
    writer.add_rope_scaling_orig_ctx_len(wide["original_max_position_embeddings"])
  head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
  share = wide.get("partial_rotary_factor", 1)
  writer.add_rope_dimension_count(int(head_dim * share))
  window = getattr(c, "sliding_window", None)
  if window and arch in ("gemma2", "gemma3", "phi3", "olmo2"):
    writer.add_sliding_window(window)
  if arch == "olmo2" and window:
    writer.add_sliding_window_pattern([t == "sliding_attention" for t in c.layer_types])
  if arch == "phi3" and not window:
    writer.add_sliding_window(0)
  if getattr(c, "attn_logit_softcapping", None):
    writer.add_attn_logit_softcapping(c.attn_logit_softcapping)
  if getattr(c, "final_logit_softcapping", None):
    writer.add_final_logit_softcapping(c.final_logit_softcapping)
  if arch == "granite":
    writer.add_attention_scale(c.attention_multiplier)
    writer.add_embedding_scale(c.embedding_multiplier)
    writer.add_residual_scale(c.residual_multiplier)
    writer.add_logit_scale(c.logits_scaling)
  experts = getattr(c, "num_local_experts", None) or getattr(c, "num_experts", None)
  if experts:
    writer.add_expert_count(experts)
    writer.add_expert_used_count(c.num_experts_per_tok)
  if getattr(c, "moe_intermediate_size", None):
    writer.add_expert_feed_forward_length(c.moe_intermediate_size)


def _rope_tensors(writer, model):
  rope = model.config.rope_parameters
  if rope.get("rope_type") == "llama3":
    scaled = model.model.rotary_emb.inv_freq
    n = 2 * len(scaled)
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, n, 2).float() / n)
    writer.add_tensor("rope_freqs.weight", (plain / scaled).numpy())
  if rope.get("rope_type") == "longrope":
    for word in ("long", "short"):
      factors = np.array(rope[f"{word}_factor"], np.float32)
      writer.add_tensor(f"rope_factors_{word}.weight", factors)


def byte_level(writer, size):
  """A byte-level vocabulary of so many tokens, with one merge."""
  from tokenizers import pre_tokenizers

  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  tokens = ["<pad>", "<bos>", "<eos>", "!!", *alphabet][:size]
  tokens += [f"<unused{i}>" for i in range(size - len(tokens))]
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre("qwen2")
  writer.add_token_list(tokens)
  writer.add_token_types([3] * 3 + [1] * (size - 3))
  writer.add_token_merges(["! !"])
  writer.add_bos_token_id(1)
  writer.add_eos_token_id(2)
  writer.add_pad_token_id(0)
  writer.add_add_bos_token(True)
