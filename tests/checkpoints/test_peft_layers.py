"""Adapters of PEFT whose layers differ, and those that hold whole weights.

Each is made by PEFT with random factors, opened here, saved again, and opened in PEFT.
"""

import importlib

import chex
import jax
import numpy as np
import optax
import pytest
import safetensors.numpy

import jaxpeft
from jaxpeft import adapters, tree
from jaxpeft.checkpoints import peft_tensors
from jaxpeft.linear import is_node
from jaxpeft.training import step as training

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
families = importlib.import_module("tests.support.families")
support = importlib.import_module("tests.support.peft_adapters")

QV, TOKENS, lora, near = support.QV, support.TOKENS, support.lora, support.near
SOME = dict(layers_to_transform=[0, 2])
RANKS = dict(
  rank_pattern={r"layers\.1\..*q_proj": 2, "down_proj": 8},
  alpha_pattern={r"layers\.[01]\.mlp\.up_proj": 3, "model.layers.2.mlp.up_proj": 9},
)

# name -> (family, options of LoraConfig, methods that the adapted tree must have)
OPENED = {
  "some layers": ("llama", SOME, "LoRA"),
  "some layers by pattern": (
    "llama", dict(layers_to_transform=1, layers_pattern="layers"), "LoRA",
  ),
  "some layers, dora": ("llama", SOME | dict(use_dora=True), "DoRA"),
  "some layers, pissa": ("llama", SOME | dict(init_lora_weights="pissa"), "LoRA"),
  "ranks": ("llama", RANKS, "LoRA"),
  "ranks, rslora": ("llama", RANKS | dict(use_rslora=True), "LoRA"),
  "ranks, dora": ("llama", RANKS | dict(use_dora=True), "DoRA"),
  "ranks, olora": ("llama", RANKS | dict(init_lora_weights="olora"), "LoRA OLoRA"),
  "rank above min(in, out)": ("llama", dict(r=40, **QV), "LoRA"),
  "excluded": ("llama", dict(exclude_modules=r".*\.1\.mlp.*|.*2.*q_proj"), "LoRA"),
  "all-linear": ("llama", dict(target_modules="all-linear"), "LoRA"),
  "regex": ("llama", dict(target_modules=r".*\.[02]\..*\.(v|up)_proj"), "LoRA"),
  "head": ("llama", dict(target_modules=["q_proj", "lm_head"]), "LoRA"),
  "embedding": ("llama", dict(target_modules=["q_proj", "embed_tokens"]), "LoRA"),
  "embedding, tied": (
    "llama-tied-bias",
    dict(target_modules=["q_proj", "embed_tokens"], ensure_weight_tying=True),
    "LoRA",
  ),
  "copies": (
    "llama", QV | dict(modules_to_save=["embed_tokens", "lm_head"]), "Full LoRA",
  ),
  "copy, tied": (
    "llama-tied-bias",
    QV | dict(modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    "Full LoRA",
  ),
  "norms": (
    "qwen3", QV | dict(modules_to_save=["1.input_layernorm", "q_norm", "model.norm"]),
    "Full LoRA",
  ),
  "norms around": (
    "gemma2", QV | dict(modules_to_save=["post_attention_layernorm"]), "Full LoRA",
  ),
  "projection with bias": (
    "qwen2", QV | dict(modules_to_save=["k_proj"]), "Full LoRA",
  ),
  "tokens": ("llama", QV | dict(trainable_token_indices=[3, 5, 96]), "Full LoRA"),
  "tokens, tied": (
    "llama-tied-bias", QV | dict(trainable_token_indices=[3, 5]), "Full LoRA",
  ),
  "tokens of the head": (
    "llama",
    QV | dict(trainable_token_indices={"embed_tokens": [4], "lm_head": [5, 7]}),
    "Full LoRA",
  ),
  "biases of lora": ("qwen2", QV | dict(bias="lora_only"), "Full LoRA"),
  "all biases": ("llama-tied-bias", QV | dict(bias="all"), "Full LoRA"),
  "bias of B": (
    "qwen2",
    QV | dict(lora_bias=True, rank_pattern={"1.self_attn.v_proj": 2}),
    "Full LoRA",
  ),
}  # fmt: skip


# Variants of the others.
SLOW = {
  "all biases", "all-linear", "embedding", "head",
  "projection with bias",
  "ranks, olora", "ranks, rslora", "some layers by pattern", "some layers, pissa",
  "tokens of the head",
}  # fmt: skip


def slow(names, which):
  """The names as parameters; some are marked as slow."""
  return [pytest.param(n, marks=[pytest.mark.slow] * (n in which)) for n in names]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return support.Bases(tmp_path_factory.mktemp("bases"))


def load(folder, **options):
  return jaxpeft.load(str(folder), dtype="float32", **options)


@pytest.mark.parametrize("name", slow(OPENED, SLOW))
def test_opens_with_equal_logits_and_comes_back(name, folder, tmp_path):
  family, options, kinds = OPENED[name]
  theirs = support.make(folder(family), lora(**options), tmp_path / "theirs")
  want = support.logits(theirs)
  model = load(folder(family))
  params = jaxpeft.load_adapter(model.params, tmp_path / "theirs")
  got = model.replace(params=params)(TOKENS)
  near(got, want, 5e-4 if "init_lora_weights" in options else 1e-4)
  assert np.abs(got - model(TOKENS)).max() > 0.01, "the adapter must do something"
  assert (got.argmax(-1) == want.argmax(-1)).all()
  found = {d["name"] for d in adapters.describe(params).values()}
  assert found == set(kinds.split())
  jaxpeft.save_adapter(params, tmp_path / "ours", "peft", base=model.params)
  again = support.logits(support.opened(folder(family), tmp_path / "ours"))
  near(again, want, 5e-4 if "init_lora_weights" in options else 1e-4)
  if kinds in ("LoRA", "DoRA") and name not in (
    "rank above min(in, out)",
    "some layers, pissa",
  ):
    # Without padding: the same factors of the same modules.
    assert shapes(tmp_path / "ours") == shapes(tmp_path / "theirs")


def shapes(directory):
  """{key: shape} of an adapter's tensors, without copies of the base's weights."""
  flat = safetensors.numpy.load_file(directory / peft_tensors.WEIGHTS)
  return {k: x.shape for k, x in flat.items() if "base_layer" not in k}


METHODS = {
  "vera": lambda: peft.VeraConfig(
    r=8, target_modules=["q_proj", "up_proj"], layers_to_transform=[1],
    modules_to_save=["lm_head"],
  ),
  "ia3-output": lambda: peft.IA3Config(
    target_modules=r".*\.[02]\..*\.k_proj", feedforward_modules=[],
    modules_to_save=["model.norm"],
  ),
  "ia3-input": lambda: peft.IA3Config(
    target_modules=["1.mlp.down_proj"], feedforward_modules=["1.mlp.down_proj"]
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", slow(METHODS, {"vera"}))
def test_other_methods_may_adapt_some_layers(name, folder, tmp_path):
  theirs = support.make(folder("llama"), METHODS[name](), tmp_path / "theirs")
  model = load(folder("llama"))
  params = jaxpeft.load_adapter(model.params, tmp_path / "theirs")
  near(model.replace(params=params)(TOKENS), support.logits(theirs))
  jaxpeft.save_adapter(params, tmp_path / "ours", "peft")
  again = support.opened(folder("llama"), tmp_path / "ours")
  near(support.logits(again), support.logits(theirs))


@pytest.mark.parametrize(
  "options",
  [
    dict(target_modules="all-linear", rank_pattern={"1.self_attn.qkv_proj": 6}),
    dict(target_modules=["gate_up_proj"], layers_to_transform=[1], use_dora=True),
  ],
)
def test_fused_projections_open(options, folder, tmp_path):
  theirs = support.make(folder("phi3"), lora(**options), tmp_path)
  model = load(folder("phi3"))
  params = jaxpeft.load_adapter(model.params, tmp_path)
  near(model.replace(params=params)(TOKENS), support.logits(theirs))


def test_padding_stays_as_it_is_in_training(folder, tmp_path):
  options = RANKS | dict(layers_to_transform=[0, 1])
  support.make(folder("llama"), lora(**options), tmp_path)
  model = load(folder("llama"))
  params = jaxpeft.load_adapter(model.params, tmp_path)
  trainable, frozen = jaxpeft.partition(params, jaxpeft.trainable_mask(params))
  tx = optax.adamw(0.1, weight_decay=0.1)
  step = training.make_step(model.transformer, tx)
  ones = np.ones((1, *TOKENS[:, 1:].shape), np.float32)
  batch = dict(
    tokens=TOKENS[None, :, :-1].astype(np.int32),
    targets=TOKENS[None, :, 1:].astype(np.int32),
    weights=ones,
    position=np.broadcast_to(np.arange(23, dtype=np.int32), ones.shape),
    segment=ones.astype(np.int32),
  )
  state = training.init_state(trainable, tx)
  before = {k: np.array(x) for k, x in tree.flatten(trainable).items()}
  state, _ = step(state, frozen, batch)
  for path, x in tree.flatten(state.trainable).items():
    padded = before[path] == 0
    assert padded.any() == (before[path].shape[0] == 3), path
    assert (np.asarray(x)[padded] == 0).all(), path
    assert (np.asarray(x)[~padded] != before[path][~padded]).mean() > 0.9, path


def test_a_copied_and_padded_adapter_merges_and_resumes(folder, tmp_path):
  options = SOME | dict(
    use_dora=True, modules_to_save=["lm_head", "embed_tokens", "0.input_layernorm"]
  )
  theirs = support.make(folder("llama"), lora(**options), tmp_path / "theirs")
  model = load(folder("llama"))
  params = jaxpeft.load_adapter(model.params, tmp_path / "theirs")
  jaxpeft.save_adapter(params, tmp_path / "own")
  again = jaxpeft.load_adapter(model.params, tmp_path / "own")
  chex.assert_trees_all_equal(again, params)
  jaxpeft.save_hf(model.replace(params=params), tmp_path / "merged")
  near(support.logits(support.base(tmp_path / "merged")), support.logits(theirs))


IN_4_BITS = {
  "dora": RANKS | dict(layers_to_transform=[1, 2], use_dora=True),
  "copies": dict(modules_to_save=["lm_head", "1.mlp.up_proj", "input_layernorm"], **QV),
  "embedding": dict(target_modules=["q_proj", "embed_tokens"]),
}


@pytest.mark.parametrize("name", slow(IN_4_BITS, {"copies", "embedding"}))
def test_adapters_open_on_a_base_in_4_bits(name, tmp_path, monkeypatch):
  wide = ("Llama", dict(hidden_size=128, intermediate_size=128))
  monkeypatch.setitem(families.FAMILIES, "wide", wide)
  families.save("wide", tmp_path / "wide")
  rounded = load(tmp_path / "wide", quantize="nf4")
  whole = jax.tree.map(
    lambda w: jax.vmap(lambda x: x.dense())(w) if is_node(w) else w,
    rounded.params, is_leaf=is_node,
  )  # fmt: skip
  jaxpeft.save_hf(rounded.replace(params=whole), tmp_path / "base")
  theirs = support.make(tmp_path / "base", lora(**IN_4_BITS[name]), tmp_path / "theirs")
  params = jaxpeft.load_adapter(rounded.params, tmp_path / "theirs")
  near(rounded.replace(params=params)(TOKENS), support.logits(theirs))
