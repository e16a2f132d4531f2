"""Interchange with Hugging Face PEFT: files, logits, a training step."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpeft
from jaxpeft import adapters, tree
from jaxpeft.adapters import to_lora
from jaxpeft.checkpoints import peft as format_
from jaxpeft.errors import InputError
from jaxpeft.training import step as training
from tests.support.methods import LINEARS

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
families = importlib.import_module("tests.support.families")
support = importlib.import_module("tests.support.peft_adapters")
lora_ga = pytest.importorskip("peft.tuners.lora.loraga")

ROOT = pathlib.Path(__file__).parents[2]

NAMES, TOKENS, near = support.NAMES, support.TOKENS, support.near

# ours -> PEFT's config of the same method; both on all seven projections
SHARED = {
  "lora": (
    jaxpeft.LoRA(rank=4, alpha=6.0),
    lambda: peft.LoraConfig(r=4, lora_alpha=6, target_modules=NAMES),
  ),
  "rslora": (
    jaxpeft.LoRA(rank=4, alpha=6.0, rslora=True),
    lambda: peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=NAMES),
  ),
  "dora": (
    jaxpeft.DoRA(rank=4, alpha=6.0),
    lambda: peft.LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=NAMES),
  ),
  "vera": (
    jaxpeft.VeRA(rank=16),
    lambda: peft.VeraConfig(r=16, target_modules=NAMES),
  ),
  "ia3-output": (
    jaxpeft.IA3(),
    lambda: peft.IA3Config(target_modules=NAMES, feedforward_modules=[]),
  ),
  "ia3-input": (
    jaxpeft.IA3(on="input"),
    lambda: peft.IA3Config(target_modules=NAMES, feedforward_modules=NAMES),
  ),
}
# PEFT makes these starts itself when it loads; written by us they are LoRA of 2 r.
RESIDUAL = {
  "pissa": (jaxpeft.PiSSA(rank=4, alpha=6.0), "pissa"),
  "olora": (jaxpeft.OLoRA(rank=4, alpha=6.0), "olora"),
}


def environment():
  """For a run in a process of its own."""
  return os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("base")
  families.save("llama", folder)
  return folder


@pytest.fixture
def model(folder):
  return jaxpeft.load(str(folder), dtype="float32")


def shaken(params, scale=0.1, seed=0):
  """theta moved by noise."""
  trainable, frozen = jaxpeft.partition(params, jaxpeft.trainable_mask(params))
  rng = np.random.default_rng(seed)
  moved = jax.tree.map(lambda x: x + scale * rng.normal(size=x.shape), trainable)
  moved = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), moved)
  return jaxpeft.combine(moved, frozen)


def adapted(model, adapter):
  return shaken(adapt(model, adapter))


def adapt(model, adapter):
  """`jaxpeft.adapt` of all projections; of a gradient of noise, where it takes one."""
  leaves = tree.flatten(model.params)
  noise = {k: np.random.default_rng(5).normal(size=x.shape) for k, x in leaves.items()}
  noise = {k: jnp.asarray(x, jnp.float32) for k, x in noise.items()}
  return jaxpeft.adapt(model.params, {LINEARS: adapter}, jax.random.key(0), noise)


@pytest.mark.parametrize("name", SHARED)
def test_ours_opens_in_peft_and_comes_back(name, model, folder, tmp_path):
  params = adapted(model, SHARED[name][0])
  errors = jaxpeft.save_adapter(params, tmp_path, "peft", base_name=str(folder))
  assert set(errors.values()) == {0.0}
  want = model.replace(params=params)(TOKENS)
  assert np.abs(want - model(TOKENS)).max() > 0.1, "the adapter must do something"
  near(
    support.logits(peft.PeftModel.from_pretrained(support.base(folder), tmp_path)), want
  )
  again = jaxpeft.load_adapter(model.params, tmp_path)
  near(model.replace(params=again)(TOKENS), want, 1e-5)
  kinds = {d["name"] for d in adapters.describe(again).values()}
  assert kinds == {type(SHARED[name][0]).__name__}


@pytest.mark.parametrize("name", SHARED)
def test_theirs_opens_in_ours(name, model, folder, tmp_path):
  theirs = support.make(folder, SHARED[name][1](), tmp_path)
  params = jaxpeft.load_adapter(model.params, tmp_path)
  near(model.replace(params=params)(TOKENS), support.logits(theirs))


@pytest.mark.parametrize("name", RESIDUAL)
def test_their_residual_start_is_made_again(name, model, folder, tmp_path):
  _, start = RESIDUAL[name]
  config = peft.LoraConfig(
    r=4, lora_alpha=6, target_modules=NAMES, init_lora_weights=start
  )
  theirs = support.make(folder, config, tmp_path)
  params = jaxpeft.load_adapter(model.params, tmp_path)
  near(model.replace(params=params)(TOKENS), support.logits(theirs), 1e-3)


@pytest.mark.parametrize("name", ["lora", "rslora", "dora", "vera", "ia3-output"])
def test_one_step_moves_theta_as_in_peft(name, model, folder, tmp_path):
  theirs = support.make(folder, SHARED[name][1](), tmp_path)
  params = jaxpeft.load_adapter(model.params, tmp_path)
  trainable, frozen = jaxpeft.partition(params, jaxpeft.trainable_mask(params))
  tx = optax.sgd(0.1)
  state = training.init_state(trainable, tx)
  step = training.make_step(model.transformer, tx)
  inputs, targets = TOKENS[:, :-1], TOKENS[:, 1:]
  ones = np.ones(inputs.shape)
  batch = dict(
    tokens=inputs[None].astype(np.int32),
    targets=targets[None].astype(np.int32),
    weights=ones[None].astype(np.float32),
    position=np.broadcast_to(np.arange(23, dtype=np.int32), inputs.shape)[None],
    segment=ones[None].astype(np.int32),
  )
  state, metrics = step(state, frozen, batch)
  tokens = torch.tensor(TOKENS)
  loss = theirs(input_ids=tokens, labels=tokens).loss
  assert float(metrics["loss"]) == pytest.approx(float(loss), abs=1e-5)
  loss.backward()
  with torch.no_grad():
    for p in theirs.parameters():
      if p.requires_grad and p.grad is not None:
        p -= 0.1 * p.grad
  theirs.save_pretrained(tmp_path / "after")
  after = jaxpeft.load_adapter(model.params, tmp_path / "after")
  want = tree.partition(after, tree.trainable_mask(after))[0]
  before, moved = tree.flatten(trainable), tree.flatten(state.trainable)
  for path, x in tree.flatten(want).items():
    near(moved[path], x, 1e-5)
    assert np.abs(x - before[path]).max() > 1e-4, path


@pytest.mark.parametrize(
  ("adapter", "rank"),
  [
    (jaxpeft.NoRA(rank=4, alpha=8.0), 4),
    (jaxpeft.LoRAXS(rank=4, alpha=8.0), 4),
    (jaxpeft.PiSSA(rank=4, alpha=8.0), 8),
    (jaxpeft.MiLoRA(rank=4, alpha=8.0), 8),
    (jaxpeft.OLoRA(rank=4, alpha=8.0), 8),
    (jaxpeft.LoRAGA(rank=4, alpha=8.0), 8),
    (jaxpeft.LoRAOne(rank=4, alpha=8.0), 4),
  ],
  ids=lambda x: type(x).__name__,
)
def test_other_methods_open_in_peft_as_exact_lora(
  adapter, rank, model, folder, tmp_path
):
  params = adapted(model, adapter)
  errors = jaxpeft.save_adapter(params, tmp_path, "peft", base=model.params)
  assert max(errors.values()) < 1e-4
  assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == rank
  theirs = peft.PeftModel.from_pretrained(support.base(folder), tmp_path)
  near(support.logits(theirs), model.replace(params=params)(TOKENS), 5e-4)


@pytest.mark.parametrize("adapter", [jaxpeft.LoRAGA(rank=4), jaxpeft.LoRAOne(rank=4)])
def test_own_files_bring_back_a_start_from_gradients(adapter, model, tmp_path):
  params = adapted(model, adapter)
  jaxpeft.save_adapter(params, tmp_path)
  again = jaxpeft.load_adapter(model.params, tmp_path)
  chex.assert_trees_all_equal(again, params)
  size = (tmp_path / "adapter.safetensors").stat().st_size
  assert size < jaxpeft.count(params).bytes * (1 + len(adapter.keeps) / 2) + 5000


def test_lora_ga_starts_where_pefts_does_and_its_conversion_opens(
  model, folder, tmp_path
):
  config = peft.LoraConfig(
    r=4,
    lora_alpha=8,
    target_modules=NAMES,
    init_lora_weights="lora_ga",
    lora_ga_config=peft.LoraGAConfig(stable_gamma=16, scale="stable"),
  )
  theirs, tokens = support.base(folder), torch.tensor(TOKENS)
  lora_ga.preprocess_loraga(
    theirs, config, lambda: theirs(input_ids=tokens, labels=tokens).loss.backward()
  )
  theirs = peft.get_peft_model(theirs, config)
  batch = dict(
    tokens=TOKENS[:, :-1],
    targets=TOKENS[:, 1:],
    weights=np.ones((2, 23), np.float32),
    position=np.tile(np.arange(23), (2, 1)),
    segment=np.ones((2, 23), np.int32),
  )
  rules = {LINEARS: jaxpeft.LoRAGA(rank=4, alpha=8.0, gamma=16.0)}
  paths = adapters.match(model.params, rules)
  gradients = jaxpeft.gradients(model.transformer, model.params, paths, [batch])
  params = jaxpeft.adapt(model.params, rules, jax.random.key(0), gradients)
  layer = theirs.base_model.model.model.layers[1]
  for path, their in (
    ("attn/o", layer.self_attn.o_proj),
    ("mlp/up", layer.mlp.up_proj),
  ):
    kind, name = path.split("/")
    own = params["layers_0"][kind][name].theta
    a = their.lora_A["default"].weight.detach().numpy()
    b = their.lora_B["default"].weight.detach().numpy().T
    # Theirs has A orthonormal and all of the size in B, and B's singular values too.
    cos_a = a @ own["a"][1] / np.linalg.norm(own["a"][1], axis=0)
    assert np.abs(np.diag(cos_a)).min() > 0.98
    b = b / np.linalg.norm(b, axis=1, keepdims=True)
    cos_b = b @ own["b"][1].T / np.linalg.norm(own["b"][1], axis=1)
    assert np.abs(np.diag(cos_b)).min() > 0.9
  config = theirs.peft_config["default"]
  config.init_lora_weights = True
  theirs.save_pretrained(tmp_path / "start")
  config.init_lora_weights = "lora_ga"
  with torch.no_grad():
    for p in theirs.parameters():
      if p.requires_grad:
        p += 0.1 * torch.randn_like(p)
  theirs.save_pretrained(
    tmp_path / "end", path_initial_model_for_weight_conversion=tmp_path / "start"
  )
  again = jaxpeft.load_adapter(model.params, tmp_path / "end")
  near(model.replace(params=again)(TOKENS), support.logits(theirs), 5e-4)


@pytest.mark.parametrize(
  "adapter", [jaxpeft.SVF(), jaxpeft.SVFT("banded"), jaxpeft.Full()]
)
def test_nearest_lora_is_the_best_of_its_rank_and_tells_its_error(
  adapter, model, folder, tmp_path
):
  params = adapted(model, adapter)
  with pytest.raises(InputError, match="give a rank"):
    jaxpeft.save_adapter(params, tmp_path, "peft", base=model.params)
  w = model.params["layers_0"]["mlp"]["up"][0]
  node = jax.tree.map(lambda x: x[0], params["layers_0"]["mlp"]["up"])
  got = to_lora.low_rank("up", node, w, rank=8)
  s = np.linalg.svd(np.asarray(node.dense() - w), compute_uv=False)
  best = np.sqrt((s[8:] ** 2).sum() / (s**2).sum())
  assert got.error == pytest.approx(best, rel=2e-2)
  # With the whole rank nothing is lost.
  errors = jaxpeft.save_adapter(params, tmp_path, "peft", base=model.params, rank=48)
  assert max(errors.values()) < 1e-4
  theirs = peft.PeftModel.from_pretrained(support.base(folder), tmp_path)
  near(support.logits(theirs), model.replace(params=params)(TOKENS), 1e-3)


def test_mixed_methods_become_one_lora(model, folder, tmp_path):
  rules = {
    "layers_.*/attn/.*": jaxpeft.LoRA(rank=4),
    "layers_.*/mlp/up": jaxpeft.LoRAXS(rank=8, alpha=4.0),
    "layers_.*/mlp/down": jaxpeft.DoRA(rank=2),
  }
  params = shaken(jaxpeft.adapt(model.params, rules, jax.random.key(0)))
  with pytest.raises(InputError, match="DoRA on layers_0/mlp/down"):
    jaxpeft.save_adapter(params, tmp_path, "peft", base=model.params)
  del rules["layers_.*/mlp/down"]
  params = shaken(jaxpeft.adapt(model.params, rules, jax.random.key(0)))
  jaxpeft.save_adapter(params, tmp_path, "peft")
  theirs = peft.PeftModel.from_pretrained(support.base(folder), tmp_path)
  near(support.logits(theirs), model.replace(params=params)(TOKENS))
  assert json.loads((tmp_path / "adapter_config.json").read_text())["rank_pattern"]


def test_ia3_of_the_paper_opens_in_peft(model, folder, tmp_path):
  into, out = jaxpeft.IA3(on="input"), jaxpeft.IA3()
  keys = {"layers_.*/attn/[kv]": out}
  for mlp in (
    {"layers_.*/mlp/down": into},
    {"layers_0/mlp/down": out, "layers_1/mlp/down": into},
  ):
    base_ = jaxpeft.load(str(folder), dtype="float32", groups=(1, 2))
    rules = keys | mlp
    params = shaken(jaxpeft.adapt(base_.params, rules, jax.random.key(0)))
    jaxpeft.save_adapter(params, tmp_path, "peft")
    theirs = peft.PeftModel.from_pretrained(support.base(folder), tmp_path)
    near(support.logits(theirs), base_.replace(params=params)(TOKENS))


def test_copies_of_base_weights_in_a_file_are_compared(tmp_path):
  families.save("qwen2", tmp_path)
  model = jaxpeft.load(str(tmp_path), dtype="float32")
  config = peft.LoraConfig(r=4, target_modules=["k_proj", "lm_head"])
  theirs = support.make(tmp_path, config, tmp_path / "theirs")
  params = jaxpeft.load_adapter(model.params, tmp_path / "theirs")
  near(model.replace(params=params)(TOKENS), support.logits(theirs))
  other = {**model.params, "head": model.params["head"] + 0.1}
  with pytest.raises(InputError, match="another base's weight"):
    jaxpeft.load_adapter(other, tmp_path / "theirs")


def test_what_could_not_be_loaded_is_not_saved(model, tmp_path):
  lora = adapted(model, jaxpeft.LoRA(rank=20))
  attached = jaxpeft.attach(model.params, "one", lora)
  for params, message in (
    (model.params, "nothing is adapted"),
    (attached, "are attached"),
    (jaxpeft.blend([lora, lora]), "rank 40 is not between"),
  ):
    with pytest.raises(InputError, match=message):
      jaxpeft.save_adapter(params, tmp_path / "out")
  (tmp_path / "thesis.txt").write_text("all of it")
  with pytest.raises(InputError, match=r"holds other files, e\.g\. thesis\.txt"):
    jaxpeft.save_adapter(lora, tmp_path)
  assert (tmp_path / "thesis.txt").exists()


def test_their_vera_is_not_saved_as_ours(model, folder, tmp_path):
  support.make(folder, SHARED["vera"][1](), tmp_path)
  params = jaxpeft.load_adapter(model.params, tmp_path)
  with pytest.raises(InputError, match="random matrices of its own"):
    jaxpeft.save_adapter(params, tmp_path / "out")
  jaxpeft.save_adapter(params, tmp_path / "peft", "peft")
  again = jaxpeft.load_adapter(model.params, tmp_path / "peft")
  near(model.replace(params=again)(TOKENS), model.replace(params=params)(TOKENS), 1e-5)


def test_parity_sees_nan_and_a_lost_adapter(model):
  from jaxpeft.export import verify

  nan = model.replace(params=jax.tree.map(lambda x: x * np.nan, model.params))
  assert np.isnan(verify.compare(model, nan, [TOKENS[0]]).difference)
  tuned = model.replace(params=adapted(model, jaxpeft.LoRA(rank=4)))
  found = verify.compare(tuned, model, [TOKENS[0]])
  want = np.abs(tuned(TOKENS[:1]) - model(TOKENS[:1]))
  assert found.mean == pytest.approx(float(want.mean()), rel=1e-4)
  assert found.difference == pytest.approx(float(want.max()), rel=1e-4)


def test_ia3_behind_a_bias_is_refused(tmp_path):
  families.save("qwen2", tmp_path)
  model = jaxpeft.load(str(tmp_path), dtype="float32")
  rules = {"layers_.*/attn/k": jaxpeft.IA3()}
  params = jaxpeft.adapt(model.params, rules, jax.random.key(0))
  with pytest.raises(InputError, match="PEFT scales the bias"):
    jaxpeft.save_adapter(params, tmp_path / "out", "peft")
  config = peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[])
  support.make(tmp_path, config, tmp_path / "theirs")
  with pytest.raises(InputError, match="PEFT scales the bias"):
    jaxpeft.load_adapter(model.params, tmp_path / "theirs")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(peft_type="OFT"), "peft_type 'OFT'"),
    (dict(modules_to_save=["lm_head"]), "no tensor base_model.model.lm_head.weight"),
    (dict(init_lora_weights="pissa_niter_4"), "pissa_niter_4"),
    (dict(use_dora=True), "lora_magnitude_vector"),
    (dict(r=5), "the model needs"),
    (dict(r=None), "is damaged"),
    (dict(rank_pattern={"(": 3}), "is damaged"),
  ],
)
def test_what_cannot_be_read_is_refused(changes, message, model, tmp_path):
  jaxpeft.save_adapter(adapted(model, jaxpeft.LoRA(rank=4)), tmp_path, "peft")
  support.edit(tmp_path, **changes)
  with pytest.raises(InputError, match=message):
    jaxpeft.load_adapter(model.params, tmp_path)


def test_left_over_and_missing_tensors_are_refused(model, tmp_path):
  import safetensors.numpy

  jaxpeft.save_adapter(adapted(model, jaxpeft.LoRA(rank=4)), tmp_path, "peft")
  file = tmp_path / format_.WEIGHTS
  flat = safetensors.numpy.load_file(file)
  extra = flat | {"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": TOKENS}
  safetensors.numpy.save_file(extra, file)
  with pytest.raises(InputError, match="no place in this model"):
    jaxpeft.load_adapter(model.params, tmp_path)
  less = {k: v for k, v in flat.items() if "layers.1.mlp.up_proj" not in k}
  safetensors.numpy.save_file(less, file)
  with pytest.raises(InputError, match=r"selects model\.layers\.1\.mlp\.up_proj"):
    jaxpeft.load_adapter(model.params, tmp_path)


@pytest.mark.parametrize(
  "adapter",
  [
    jaxpeft.LoRA(rank=4),
    jaxpeft.PiSSA(rank=4, iterations=2),
    jaxpeft.SVFT("random", off_diagonals=2),
    jaxpeft.LoRAXS(rank=4, iterations=2),
    jaxpeft.SVF(),
    jaxpeft.VeRA(rank=8),
  ],
  ids=lambda x: type(x).__name__,
)
def test_own_format_is_as_small_as_theta_and_knows_its_base(adapter, model, tmp_path):
  params = adapted(model, adapter)
  key = jax.random.key(0)
  jaxpeft.save_adapter(params, tmp_path / "one", key=key)
  again = jaxpeft.load_adapter(model.params, tmp_path / "one")
  near(model.replace(params=again)(TOKENS), model.replace(params=params)(TOKENS), 1e-5)
  size = (tmp_path / "one" / "adapter.safetensors").stat().st_size
  assert size < jaxpeft.count(params).bytes + 8192
  other = jax.tree.map(lambda x: x + 0.1, model.params)
  with pytest.raises(InputError, match="another base"):
    jaxpeft.load_adapter(other, tmp_path / "one")
  if (
    getattr(adapter, "iterations", None) or getattr(adapter, "pattern", "") == "random"
  ):
    jaxpeft.save_adapter(params, tmp_path / "two", key=jax.random.key(1))
    with pytest.raises(InputError, match="singular vectors"):
      jaxpeft.load_adapter(model.params, tmp_path / "two")


def test_parity_compiles_a_model_once_for_rows_of_any_length(model):
  from jaxpeft import model as models
  from jaxpeft.export import verify

  rows = [TOKENS[0][:n] for n in (3, 7, 5)]
  other = jax.tree.map(lambda x: x + 0.01, model.params)
  other = model.replace(params=other)
  before = models._logits._cache_size()
  found = verify.compare(model, other, rows)
  assert models._logits._cache_size() <= before + 1  # both have the same shapes
  alone = [verify.compare(model, other, [row]).difference for row in rows]
  assert found.difference == pytest.approx(max(alone), rel=1e-4)


@pytest.mark.slow
def test_export_measures_its_parity_and_refuses_what_differs(tmp_path, capsys):
  from jaxpeft.export import verify

  run = tmp_path / "run"
  command = [
    sys.executable,
    ROOT / "train.py",
    f"--config={ROOT}/configs/svft_banded.py",
    f"--workdir={run}",
    "--config.train.steps=3",
    "--config.eval.task=",
  ]
  subprocess.run(command, check=True, cwd=tmp_path, env=environment())
  text = verify.export_run(run, "peft", tmp_path / "peft", None, 128, None)
  assert "logits differ by at most" in text
  config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
  assert config["r"] == 128
  with pytest.raises(InputError, match="give a rank"):
    verify.export_run(run, "peft", tmp_path / "two", None, None, None)
  with pytest.raises(InputError, match="not exported: logits differ"):
    verify.export_run(run, "peft", tmp_path / "two", None, 1, 1e-6)
  with pytest.raises(InputError, match="is not empty"):
    verify.export_run(run, "hf", tmp_path / "peft", None, None, None)
  assert not (tmp_path / "two").exists()
  text = verify.export_run(run, "hf", tmp_path / "hf", "bfloat16", None, None)
  assert "greedy tokens agree" in text
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
  own = jaxpeft.load_run(run)
  near(support.logits(theirs.float()), own(TOKENS), 1.0)
  # A run's own adapter folder is in the same format as a notebook's.
  again = jaxpeft.load_adapter(jaxpeft.load(dtype="float32").params, run / "adapter")
  near(own.replace(params=again)(TOKENS), own(TOKENS), 1e-5)
