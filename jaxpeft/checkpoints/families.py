"""The table of model families: what a `config.json` does not say, and tensor names.

A new family is one row of `FAMILIES`, and one line in tests/support/families.py, which
compares it with transformers. Names map ours inside a layer to Hugging Face's; their
matrices are [out, in], ours are [in, out].
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxpeft.checkpoints.hf_fields import Fields

LAYER = {
  **{f"attn/{n}": f"self_attn.{n}_proj.weight" for n in "qkvo"},
  **{f"mlp/{n}": f"mlp.{n}_proj.weight" for n in ("gate", "up", "down")},
  **{f"bias/{n}": f"self_attn.{n}_proj.bias" for n in "qkvo"},
  **{f"bias/{n}": f"mlp.{n}_proj.bias" for n in ("gate", "up", "down")},
  "norm/attn": "input_layernorm.weight",
  "norm/mlp": "post_attention_layernorm.weight",
  "norm/q": "self_attn.q_norm.weight",
  "norm/k": "self_attn.k_norm.weight",
}
_POST_NORMS = {
  "norm/attn_post": "post_attention_layernorm.weight",
  "norm/mlp": "pre_feedforward_layernorm.weight",
  "norm/mlp_post": "post_feedforward_layernorm.weight",
}
TOP = {
  "embed": "model.embed_tokens.weight",
  "final_norm": "model.norm.weight",
  "head": "lm_head.weight",
}


@dataclasses.dataclass(frozen=True)
class Family:
  """One row of the table.

  Attributes:
    architecture: the class in transformers, without "ForCausalLM".
    facts: fields of `ModelConfig` that the family fixes.
    defaults: values of fields that a config.json may leave out.
    names: our name inside a layer -> theirs, where they differ from `LAYER`. A name
      with "{expert}" stands for one tensor per expert.
    fused: their tensor -> ours that lie in it one after the other, along its rows.
    fields: further fields of config.json that are understood: {theirs: field of
      `ModelConfig`}.
    aliases: {another name of a field: its name here}.
    local: (index of a layer, fields of config.json) -> whether the layer has a window,
      where layer_types does not say so; None: all layers have it.
    local_rope: whether layers with a window have their own rotary embedding.
    uses: groups of optional fields that the family's config has: "attention_bias",
      "mlp_bias", "window", "use_window", "layer_types".
  """

  architecture: str
  facts: dict[str, Any] = dataclasses.field(default_factory=dict)
  defaults: dict[str, Any] = dataclasses.field(default_factory=dict)
  names: dict[str, str] = dataclasses.field(default_factory=dict)
  fused: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  fields: dict[str, str] = dataclasses.field(default_factory=dict)
  aliases: dict[str, str] = dataclasses.field(default_factory=dict)
  local: Callable[[int, Fields], bool] | None = None
  local_rope: bool = False
  uses: tuple[str, ...] = ()

  def tensor(self, inside: str) -> tuple[str, tuple[str, ...]]:
    """(their name of our weight inside a layer, all of ours that share the tensor)."""
    for name, parts in self.fused.items():
      if inside in parts:
        return name, parts
    return (LAYER | self.names)[inside], (inside,)


def _every(n: int, field: str = "") -> Callable[[int, Fields], bool]:
  """Windows in all layers but every n-th; a field may name another n."""
  return lambda i, f: (i + 1) % (f.integer(field, n) if field else n) != 0


def rotates(f: Fields) -> list[bool]:
  """For each layer of SmolLM3, whether it has a rotary embedding."""
  depth, every = f.integer("num_hidden_layers"), f.integer("no_rope_layer_interval", 4)
  given = f.names("no_rope_layers", depth)
  return [bool(x) for x in given or [(i + 1) % every for i in range(depth)]]


_GEMMA: dict[str, Any] = dict(norm_offset=1.0, scaled_embedding=True)
_GEMMA_DEFAULTS: dict[str, Any] = dict(
  tie_word_embeddings=True, head_dim=256, hidden_act="gelu_pytorch_tanh",
)  # fmt: skip
_MISTRAL_DEFAULTS = dict(sliding_window=4096, num_key_value_heads=8)
_QWEN_DEFAULTS = dict(sliding_window=4096, num_key_value_heads=32)
_QWEN: dict[str, Any] = dict(
  local=lambda i, f: i >= f.number("max_window_layers", 28),
  uses=("window", "use_window", "layer_types"),
)
_EXPERTS = {f"experts/{n}": f"mlp.experts.{{expert}}.{n}_proj.weight"
            for n in ("gate", "up", "down")}  # fmt: skip
_MIXTRAL = {f"experts/{n}": f"block_sparse_moe.experts.{{expert}}.{w}.weight"
            for n, w in (("gate", "w1"), ("up", "w3"), ("down", "w2"))}  # fmt: skip
_OLMO: dict[str, Any] = dict(
  names={n: _POST_NORMS[n] for n in ("norm/attn_post", "norm/mlp_post")},
  facts=dict(pre_norms=False, post_norms=True, qk_norm="width"),
)
_OLMO_DEFAULTS = dict(rms_norm_eps=1e-5)

FAMILIES = {
  "llama": Family(
    "Llama",
    defaults=dict(max_position_embeddings=2048),
    uses=("attention_bias", "mlp_bias"),
  ),
  "mistral": Family("Mistral", defaults=_MISTRAL_DEFAULTS, uses=("window",)),
  "ministral": Family(
    "Ministral", defaults=_MISTRAL_DEFAULTS, uses=("window", "layer_types")
  ),
  "ministral3": Family(
    "Ministral3",
    defaults=dict(
      rms_norm_eps=1e-5, num_key_value_heads=8, head_dim=128,
      rope_parameters=dict(
        rope_type="yarn", rope_theta=1e6, factor=16.0, mscale=1.0, mscale_all_dim=1.0,
        original_max_position_embeddings=16_384, llama_4_scaling_beta=0.1,
      ),
    ),
    uses=("window",),
  ),
  "qwen2": Family(
    "Qwen2", facts=dict(qkv_bias=True), defaults=_QWEN_DEFAULTS, **_QWEN
  ),
  "qwen3": Family(
    "Qwen3",
    facts=dict(qk_norm="head"),
    defaults=_QWEN_DEFAULTS | dict(head_dim=128),
    local=_QWEN["local"],
    uses=("attention_bias", *_QWEN["uses"]),
  ),
  "qwen3_moe": Family(
    "Qwen3Moe",
    facts=dict(qk_norm="head"),
    defaults=dict(
      num_experts=128, num_experts_per_tok=8, norm_topk_prob=False,
      moe_intermediate_size=768, num_key_value_heads=4, sliding_window=4096,
    ),
    names=_EXPERTS | {"router/w": "mlp.gate.weight"},
    fields=dict(
      num_experts="experts", num_experts_per_tok="experts_per_token",
      norm_topk_prob="normalize_experts", moe_intermediate_size="ff",
    ),
    aliases=dict(num_local_experts="num_experts"),
    uses=("attention_bias", "window", "use_window"),
  ),
  "mixtral": Family(
    "Mixtral",
    defaults=dict(
      num_local_experts=8, num_experts_per_tok=2, rms_norm_eps=1e-5,
      num_key_value_heads=8, rope_theta=1e6,
    ),
    names=_MIXTRAL | {"router/w": "block_sparse_moe.gate.weight"},
    fields=dict(
      num_local_experts="experts", num_experts_per_tok="experts_per_token"
    ),
    uses=("window",),
  ),
  "gemma": Family(
    "Gemma", facts=_GEMMA, defaults=_GEMMA_DEFAULTS | dict(num_key_value_heads=16)
  ),
  "gemma2": Family(
    "Gemma2",
    facts=_GEMMA | dict(post_norms=True),
    defaults=_GEMMA_DEFAULTS
    | dict(
      sliding_window=4096, query_pre_attn_scalar=256, num_key_value_heads=4,
      attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
    ),
    names=_POST_NORMS,
    local=_every(2),
    uses=("attention_bias", "window", "layer_types"),
  ),
  "gemma3_text": Family(
    "Gemma3",
    facts=_GEMMA | dict(post_norms=True, qk_norm="head"),
    defaults=_GEMMA_DEFAULTS
    | dict(
      sliding_window=4096, query_pre_attn_scalar=256,
      rope_theta=1_000_000.0, rope_local_base_freq=10_000.0,
      vocab_size=262_208, num_attention_heads=8, num_key_value_heads=4,
      max_position_embeddings=131_072,
      attn_logit_softcapping=None, final_logit_softcapping=None,
    ),
    names=_POST_NORMS,
    local=_every(6, "sliding_window_pattern"),
    local_rope=True,
    uses=("attention_bias", "window", "layer_types"),
  ),
  "phi3": Family(
    "Phi3",
    defaults=dict(rms_norm_eps=1e-5),
    fused={
      "self_attn.qkv_proj.weight": ("attn/q", "attn/k", "attn/v"),
      "mlp.gate_up_proj.weight": ("mlp/gate", "mlp/up"),
    },
    uses=("window",),
  ),
  "olmo2": Family("Olmo2", defaults=_OLMO_DEFAULTS, uses=("attention_bias",), **_OLMO),
  "olmo3": Family(
    "Olmo3",
    defaults=_OLMO_DEFAULTS | dict(sliding_window=4096, rope_theta=500_000.0),
    local=_every(4),
    local_rope=True,
    uses=("attention_bias", "window", "layer_types"),
    **_OLMO,
  ),
  "granite": Family(
    "Granite",
    defaults=dict(
      embedding_multiplier=1.0, logits_scaling=1.0, residual_multiplier=1.0,
      attention_multiplier=1.0,
    ),
    fields=dict(
      embedding_multiplier="embed_scale", logits_scaling="logit_scale",
      residual_multiplier="residual_scale", attention_multiplier="query_scale",
    ),
    uses=("attention_bias", "mlp_bias"),
  ),
  "smollm3": Family(
    "SmolLM3",
    defaults=dict(
      rope_theta=2_000_000.0, tie_word_embeddings=True, no_rope_layers=None,
      no_rope_layer_interval=4, num_key_value_heads=4,
    ),
    local=lambda i, f: not rotates(f)[i],
    uses=("attention_bias", "mlp_bias", "window", "use_window", "layer_types"),
  ),
}  # fmt: skip
# Models of text and images: {model_type: model_type of its language model if its
# text_config does not name one}. The language model is what is opened.
MULTIMODAL = {"gemma3": "gemma3_text", "mistral3": "mistral"}
