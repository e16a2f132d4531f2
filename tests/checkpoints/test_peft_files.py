"""Adapters of PEFT in the wild: names of tensors, options, damaged files."""

import importlib

import chex
import jax
import numpy as np
import pytest
import safetensors.numpy

import jaxpeft
from jaxpeft.checkpoints import peft_tensors
from jaxpeft.errors import InputError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
support = importlib.import_module("tests.support.peft_adapters")

QV, TOKENS, lora, near = support.QV, support.TOKENS, support.lora, support.near


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return support.Bases(tmp_path_factory.mktemp("bases"))


def load(folder, **options):
  return jaxpeft.load(str(folder), dtype="float32", **options)


RENAMED = {
  "a state dict": lambda k: (
    k.replace(".lora_A.", ".lora_A.default.")
    .replace(".lora_B.", ".lora_B.default.")
    .replace("magnitude_vector", "magnitude_vector.default.weight")
    .replace("norm.weight", "norm.modules_to_save.default.weight")
    .replace("lm_head.weight", "lm_head.modules_to_save.default.weight")
  ),
  "an old state dict": lambda k: k.replace("magnitude_vector", "magnitude_vector.mine"),
  "a compiled model": lambda k: k.replace("model.layers", "model._orig_mod.layers"),
  "no prefix": lambda k: k.removeprefix("base_model.model."),
}


@pytest.mark.parametrize("name", RENAMED)
def test_all_names_of_a_tensor_are_understood(name, folder, tmp_path):
  options = dict(use_dora=True, modules_to_save=["lm_head", "model.norm"]) | QV
  support.make(folder("llama"), lora(**options), tmp_path)
  model = load(folder("llama"))
  want = jaxpeft.load_adapter(model.params, tmp_path)
  file = tmp_path / peft_tensors.WEIGHTS
  flat = {RENAMED[name](k): x for k, x in safetensors.numpy.load_file(file).items()}
  safetensors.numpy.save_file(flat, file)
  chex.assert_trees_all_equal(jaxpeft.load_adapter(model.params, tmp_path), want)


def test_an_adapter_of_the_model_without_head_opens(folder, tmp_path):
  config = lora(rank_pattern={"layers.1.self_attn.q_proj": 2}, **QV)
  inner = transformers.AutoModel.from_pretrained(folder("llama")).float()
  torch.manual_seed(0)
  theirs = peft.get_peft_model(inner, config)
  for name, p in theirs.named_parameters():
    if "lora_" in name:
      torch.nn.init.normal_(p, std=0.1)
  theirs.save_pretrained(tmp_path)
  with torch.no_grad():
    hidden = theirs.eval()(torch.tensor(TOKENS)).last_hidden_state
    want = support.base(folder("llama")).lm_head(hidden).numpy()
  model = load(folder("llama"))
  params = jaxpeft.load_adapter(model.params, tmp_path)
  near(model.replace(params=params)(TOKENS), want)


# Options of adapter_config.json in public repositories, from PEFT 0.3 to 0.21, that say
# nothing about the computation.
HARMLESS = [
  dict(enable_lora=None, merge_weights=False),
  dict(loftq_config={}, megatron_core="megatron.core", layer_replication=None),
  dict(
    auto_mapping=dict(base_model_class="Qwen2ForCausalLM", unsloth_fixed=True),
    qalora_group_size=16, use_qalora=False, target_parameters=None, task_type=None,
  ),
  dict(
    peft_version="0.21.2", revision="main", fan_in_fan_out=True, velora_config=None,
    eva_config=dict(rho=2.0), init_lora_weights="eva", corda_config=None,
  ),
  dict(init_lora_weights="gaussian", lora_dropout=0.05, runtime_config=dict(x=1)),
  dict(layers_to_transform=[], layers_pattern=None, exclude_modules=[]),
  dict(target_modules=None, a_future_option=16),
]  # fmt: skip


@pytest.mark.parametrize("options", HARMLESS)
def test_options_that_change_nothing_are_no_reason_to_refuse(options, saved, capfd):
  model, directory = saved
  want = jaxpeft.load_adapter(model.params, directory)
  support.edit(directory, **options)
  chex.assert_trees_all_equal(jaxpeft.load_adapter(model.params, directory), want)
  assert ("a_future_option" in capfd.readouterr().err) == ("a_future_option" in options)


@pytest.fixture
def saved(folder, tmp_path):
  """A model and the directory of a LoRA of q and v, with a copy of the head."""
  model = load(folder("llama"))
  rules = {".*/attn/[qv]": jaxpeft.LoRA(rank=4), "head": jaxpeft.Full()}
  params = jaxpeft.adapt(model.params, rules, jax.random.key(0))
  jaxpeft.save_adapter(params, tmp_path / "saved", "peft")
  return model, tmp_path / "saved"


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(kasa_config={"beta": 1}), "kasa_config"),
    (dict(layer_replication=[[0, 2], [1, 3]]), "layer_replication"),
    (dict(enable_lora=[True, False, True]), "enable_lora"),
    (dict(init_lora_weights="loftq"), "loftq"),
    (dict(use_dora=True, init_lora_weights="pissa"), "use_dora with"),
    (dict(target_modules=["q_proj"]), "does not select"),
    (dict(target_modules="all-linear"), "has no tensors for it"),
    (dict(layers_to_transform=[0]), "does not select"),
    (dict(modules_to_save=["lm_head", "model.norm"]), "no tensor .*model.norm.weight"),
    (dict(trainable_token_indices={"embed_tokens": [1]}), "trainable_tokens_delta"),
    (dict(lora_alpha="6"), "is damaged"),
    (dict(lora_alpha=float("inf")), "is damaged"),
    (dict(alpha_pattern={"q_proj": 10**400}), "is damaged"),
    (dict(target_modules=5), "is damaged"),
    (dict(modules_to_save=3), "is damaged"),
    (dict(layers_to_transform={}), "does not select"),
    (dict(peft_type=[]), "peft_type"),
  ],
  ids=str,
)
def test_what_changes_the_computation_is_refused(options, message, saved):
  model, directory = saved
  support.edit(directory, **options)
  with pytest.raises(InputError, match=message):
    jaxpeft.load_adapter(model.params, directory)


def changed(name, x):
  """A function that changes one tensor of a file, or removes it if x is None."""
  return lambda flat: {k: v for k, v in (flat | {name: x}).items() if v is not None}


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (changed(f"{Q}.lora_A.weight", np.full((4, 48), np.nan, np.float32)), "NaN"),
    (changed(f"{Q}.lora_A.weight", np.ones((4, 48), np.int32)), "int32"),
    (changed(f"{Q}.lora_A.weight", np.ones((4, 47), np.float32)), "needs .4, 48"),
    (changed(f"{Q}.lora_B.weight", None), "no tensor"),
    (changed(f"{Q}.lora_A.second.weight", np.ones((4, 48), np.float32)), "several"),
    (changed(f"{Q}.lora_B.bias", np.ones(48, np.float32)), "no place in this model"),
    (changed(f"{Q}.bias", np.ones(48, np.float32)), "no place in this model"),
    (changed("base_model.model.lm_head.weight", np.ones((99, 48))), "vocabulary"),
    (changed(f"{Q}.qkv_proj.lora_A.weight", np.ones(())), "no place in this model"),
  ],
  ids=range(9),
)
def test_damaged_tensors_are_refused(change, message, saved):
  model, directory = saved
  file = directory / peft_tensors.WEIGHTS
  flat = safetensors.numpy.load_file(file)
  safetensors.numpy.save_file(change(flat), file)
  with pytest.raises(InputError, match=message):
    jaxpeft.load_adapter(model.params, directory)


def test_a_pickle_is_not_read(saved):
  model, directory = saved
  (directory / peft_tensors.WEIGHTS).rename(directory / "adapter_model.bin")
  with pytest.raises(InputError, match="is a pickle"):
    jaxpeft.load_adapter(model.params, directory)


@pytest.mark.parametrize(
  "options",
  [
    dict(modules_to_save=["embed_tokens", "lm_head"]),
    dict(modules_to_save=["embed_tokens"]),
    dict(target_modules=["q_proj", "lm_head"]),
    dict(target_modules=["q_proj", "embed_tokens"]),
    dict(trainable_token_indices={"embed_tokens": [3, 5], "lm_head": [3, 7]}),
  ],
  ids=str,
)
def test_a_tied_model_has_no_head_to_change_alone(options, folder, tmp_path):
  theirs = folder("llama-tied-bias")
  support.make(theirs, lora(**QV | options), tmp_path)
  with pytest.raises(InputError, match="this model ties them"):
    jaxpeft.load_adapter(load(theirs).params, tmp_path)


def test_copies_alone_have_no_place_in_their_format(folder, tmp_path):
  model = load(folder("llama"))
  params = jaxpeft.adapt(model.params, {"embed": jaxpeft.Full()}, jax.random.key(0))
  with pytest.raises(InputError, match="only embed are adapted"):
    jaxpeft.save_adapter(params, tmp_path, "peft")
