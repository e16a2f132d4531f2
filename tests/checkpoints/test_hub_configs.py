"""config.json files of models that people use: each opens, or is refused for a reason.

hub_configs.json holds for each model the fields of its config.json, some shortened:
"seen" in public repositories, or "known": recalled, completed, or a variant of one that
was seen. "expect" is "opens", or a regular expression that the message of the refusal
matches. A field that does not change what the model computes is no reason.
"""

import json
import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from jaxpeft.checkpoints import hf_config
from jaxpeft.errors import InputError
from jaxpeft.transformer import rope
from jaxpeft.transformer.attention import EVERYWHERE

MODELS = json.loads(pathlib.Path(__file__).with_name("hub_configs.json").read_text())
OPEN = [name for name, model in MODELS.items() if model["expect"] == "opens"]
REFUSED = [name for name in MODELS if name not in OPEN]
SCALED = [
  name
  for name in OPEN
  if re.search(r'"(rope_)?type": "(?!default)', json.dumps(MODELS[name]["config"]))
]

# Where transformers reads sliding_window, by its modeling code: in the layers that
# layer_types names, or in all of them. Other families have no windows.
BY_LAYER = "ministral qwen2 qwen3 gemma2 gemma3_text olmo3 smollm3".split()
IN_ALL = "mistral ministral3 qwen3_moe mixtral phi3".split()
OTHER = "llama gemma gemma3 mistral3 olmo2 granite".split()


def config_of(name: str) -> dict:
  """A fresh copy, because transformers changes what it is given."""
  return copy(MODELS[name]["config"])


def copy(hf: dict) -> dict:
  return json.loads(json.dumps(hf))


def oracle(hf: dict):
  """transformers' own configuration of the language model, with its defaults."""
  given = copy(hf)
  given.pop("quantization_config", None)
  if (given.get("rope_scaling") or {}).get("type") == "su":
    given["rope_scaling"]["type"] = "longrope"  # the old name; 5.24 fails on it
  whole = transformers.AutoConfig.for_model(given.pop("model_type"), **given)
  return whole.get_text_config(decoder=True)


def windows_of(t) -> list[int]:
  """Of each layer, in tokens. One that no text can fill is none."""
  local = {
    **dict.fromkeys(BY_LAYER, getattr(t, "layer_types", None)),
    **dict.fromkeys(IN_ALL, ["sliding_attention"] * t.num_hidden_layers),
  }.get(t.model_type) or ["full_attention"] * t.num_hidden_layers
  size = getattr(t, "sliding_window", None) or EVERYWHERE
  size = EVERYWHERE if size >= t.max_position_embeddings else size
  return [size if kind == "sliding_attention" else EVERYWHERE for kind in local]


def _stretch(t) -> float:
  """Models with dynamic scaling are used beyond max_position_embeddings."""
  rope_ = t.rope_parameters or {}
  return rope_["factor"] if rope_.get("rope_type") == "dynamic" else 1


def our_windows(c) -> list[int]:
  windows = c.windows or [EVERYWHERE] * c.depth
  return [w if w < c.max_positions else EVERYWHERE for w in windows]


def ropes_of(t) -> list[tuple]:
  """Of each layer: (base, kind, share of a head that is rotated, its layer type)."""
  layers = []
  for i in range(t.num_hidden_layers):
    kind = t.layer_types[i] if hasattr(t, "layer_types") else None
    nested = kind in t.rope_parameters
    p = t.rope_parameters[kind] if nested else t.rope_parameters
    facts = (p["rope_theta"], p["rope_type"], p.get("partial_rotary_factor", 1.0))
    rotated = getattr(t, "no_rope_layers", [1] * t.num_hidden_layers)[i]
    layers.append((*facts, kind if nested else None) if rotated else ("none",))
  return layers


def our_ropes(c) -> list:
  """The embedding of each layer."""
  return [c.ropes[i] for i in c.rope_of or [0] * c.depth]


def facts_of(hf: dict, t) -> dict:
  """What transformers' configuration says, in the names of `ModelConfig`."""
  dims = getattr(t, "head_dim", None) or t.hidden_size // t.num_attention_heads
  gemma, granite = t.model_type.startswith("gemma"), t.model_type == "granite"
  scalar = getattr(t, "query_pre_attn_scalar", None) or dims
  activation = getattr(t, "hidden_activation", None) or t.hidden_act
  return dict(
    vocab_size=t.vocab_size,
    width=t.hidden_size,
    depth=t.num_hidden_layers,
    heads=t.num_attention_heads,
    kv_heads=t.num_key_value_heads,
    head_dim=dims,
    ff=getattr(t, "moe_intermediate_size", None) or t.intermediate_size,
    max_positions=int(t.max_position_embeddings * _stretch(t)),
    rms_eps=t.rms_norm_eps,
    activation={"gelu_pytorch_tanh": "gelu_tanh"}.get(activation, activation),
    # In models of images, transformers lets the file decide: it looks for a head.
    tied=(
      {"tie_word_embeddings": t.tie_word_embeddings} | hf | hf.get("text_config", {})
    )["tie_word_embeddings"],
    qkv_bias=t.model_type == "qwen2" or getattr(t, "attention_bias", False),
    o_bias=getattr(t, "attention_bias", False),
    query_scale=t.attention_multiplier if granite else scalar**-0.5,
    embed_scale=t.hidden_size**0.5 if gemma else getattr(t, "embedding_multiplier", 1),
    residual_scale=getattr(t, "residual_multiplier", 1),
    logit_scale=getattr(t, "logits_scaling", 1),
    attn_softcap=getattr(t, "attn_logit_softcapping", None),
    final_softcap=getattr(t, "final_logit_softcapping", None),
    experts=getattr(t, "num_local_experts", 0),
    experts_per_token=getattr(t, "num_experts_per_tok", 0),
    normalize_experts=getattr(t, "norm_topk_prob", True),
  )


def agree(c, hf: dict):
  """Whether our configuration says what transformers' says."""
  t = oracle(hf)
  theirs = facts_of(hf, t)
  ours = {field: getattr(c, field) for field in theirs}
  ours["query_scale"] = c.query_scale or c.head_dim**-0.5
  for field in theirs:
    assert ours[field] == pytest.approx(theirs[field]), field
  assert our_windows(c) == windows_of(t)
  shapes = [(r.theta, r.kind, r.share) for r in our_ropes(c)]
  assert [("none",) if "none" in x else x for x in shapes] == [
    x[:3] for x in ropes_of(t)
  ]


@pytest.mark.parametrize("name", OPEN)
def test_a_config_that_people_use_opens_with_the_facts_of_transformers(name):
  hf = config_of(name)
  c = hf_config.from_hf(config_of(name), name)
  agree(c, hf)
  ids = hf.get("eos_token_id", list(c.eos_ids))
  assert list(c.eos_ids) == (ids if isinstance(ids, list) else [ids])


@pytest.mark.parametrize("dump", ["to_dict", "to_diff_dict"])
@pytest.mark.parametrize("family", [*BY_LAYER, *IN_ALL, *OTHER])
def test_what_transformers_5_writes_opens(family, dump):
  hf = copy(getattr(transformers.AutoConfig.for_model(family), dump)())
  agree(hf_config.from_hf(copy(hf)), hf)


@pytest.mark.parametrize("family", [*BY_LAYER, *IN_ALL, *OTHER[:2], *OTHER[4:]])
def test_a_field_that_is_left_out_has_its_default_or_is_named(family):
  whole = copy(transformers.AutoConfig.for_model(family).to_diff_dict())
  # transformers itself needs as many kinds of layers as layers.
  needed = set()
  for left_out in sorted(whole.keys() - {"model_type", "num_hidden_layers"}):
    hf = {k: v for k, v in whole.items() if k != left_out}
    try:
      agree(hf_config.from_hf(copy(hf)), hf)
    except InputError as e:
      needed |= {left_out} if f"'{left_out}' is missing" in str(e) else {str(e)}
  sizes = "vocab_size hidden_size intermediate_size num_attention_heads"
  assert needed <= {*sizes.split(), "max_position_embeddings"}


@pytest.mark.parametrize("name", SCALED)
def test_scaled_positions_have_the_frequencies_of_transformers(name):
  t, c = oracle(config_of(name)), hf_config.from_hf(config_of(name), name)
  layers = dict(zip(ropes_of(t), our_ropes(c), strict=True))
  for (_, kind, share, layer_type), r in [x for x in layers.items() if len(x[0]) > 1]:
    if kind == "default":
      continue
    for length in (100, t.max_position_embeddings):
      freq, factor = rope.KINDS[kind](r, int(c.head_dim * share), jnp.array([length]))
      their_freq, their_factor = ROPE_INIT_FUNCTIONS[kind](
        t, "cpu", seq_len=length, layer_type=layer_type
      )
      np.testing.assert_allclose(np.atleast_2d(freq)[0], their_freq, rtol=2e-5)
      np.testing.assert_allclose(factor, their_factor, rtol=1e-6)


@pytest.mark.parametrize("name", [n for n in OPEN if "inistral-3" in n or "Devs" in n])
def test_queries_grow_where_ministral_3_says_so(name):
  p = oracle(config_of(name)).rope_parameters
  beta = p["llama_4_scaling_beta"]
  growth = hf_config.from_hf(config_of(name), name).query_growth
  assert (growth or (0.0, None))[0] == beta
  assert growth is None or growth[1] == p["original_max_position_embeddings"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_computed_is_refused_in_one_line_that_names_it(name):
  with pytest.raises(InputError) as refusal:
    hf_config.from_hf(config_of(name), name)
  message = str(refusal.value)
  assert "\n" not in message
  assert re.search(MODELS[name]["expect"], message), message
  assert name in message


def test_the_models_are_many_and_cover_every_family():
  opened = {MODELS[name]["config"]["model_type"] for name in OPEN}
  assert opened == {*BY_LAYER, *IN_ALL, *OTHER}
  assert len(MODELS) >= 100
