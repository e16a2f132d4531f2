"""Hugging Face models in and out, the adapter's file, the state of a run."""

import json
import shutil
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
import torch
import transformers

import jaxpeft
from jaxpeft.checkpoints import adapter as adapter_files
from jaxpeft.checkpoints import hf, hf_config, hf_write, run_state
from jaxpeft.training import step as training
from tests.support.families import FAMILIES, save


@pytest.mark.parametrize("name", FAMILIES)
def test_saved_models_open_in_transformers_with_equal_logits(name, tmp_path):
  theirs = save(name, tmp_path / "a")
  ours = jaxpeft.load(str(tmp_path / "a"), dtype="float32", groups=(2, 1))
  jaxpeft.save_hf(ours, tmp_path / "b")
  again = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "b", attn_implementation="eager"
  ).float()
  x = torch.randint(3, 97, (2, 20))
  with torch.no_grad():
    np.testing.assert_allclose(again(x).logits, theirs(x).logits, atol=1e-5)
  transformers.AutoTokenizer.from_pretrained(tmp_path / "b")
  assert hf.read_config(tmp_path / "b") == ours.config


def test_an_adapted_model_is_saved_merged(tmp_path):
  save("llama", tmp_path / "a")
  model = jaxpeft.load(str(tmp_path / "a"), dtype="float32")
  adapter = jaxpeft.SVFT("banded", start="reference")
  params = jaxpeft.adapt(model.params, {".*/attn/.*": adapter}, jax.random.key(0))
  adapted = model.replace(params=params)
  jaxpeft.save_hf(adapted, tmp_path / "b")
  x = np.arange(20).reshape(1, 20)
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b")
  with torch.no_grad():
    got = again(torch.tensor(x)).logits
  np.testing.assert_allclose(got, adapted(x), atol=1e-4)
  assert np.abs(adapted(x) - model(x)).max() > 0.05


@pytest.mark.parametrize("old", [False, True])
def test_configs_of_transformers_4_and_5_are_the_same(old, tmp_path):
  save("llama3", tmp_path)
  values = json.loads((tmp_path / "config.json").read_text())
  if old:
    rope = values.pop("rope_parameters")
    values |= dict(rope_theta=rope.pop("rope_theta"), rope_scaling=rope)
    values["torch_dtype"] = values.pop("dtype")
  config = hf_config.from_hf(values)
  assert config.ropes[0].theta == 10_000
  assert dict(config.ropes[0].options)["factor"] == 8.0


def test_sharded_checkpoints_are_read(tmp_path):
  theirs = save("qwen2", tmp_path, max_shard_size="40KB")
  assert len(list(tmp_path.glob("*.safetensors"))) > 2
  x = torch.randint(3, 97, (1, 9))
  ours = jaxpeft.load(str(tmp_path), dtype="float32")
  with torch.no_grad():
    np.testing.assert_allclose(ours(x.numpy()), theirs(x).logits, atol=1e-4)


def test_written_shards_are_read_by_both(tmp_path, monkeypatch):
  theirs = save("gemma2", tmp_path / "a")
  monkeypatch.setattr(hf_write, "_SHARD_BYTES", 30_000)
  jaxpeft.save_hf(jaxpeft.load(str(tmp_path / "a"), dtype="float32"), tmp_path / "b")
  assert len(list((tmp_path / "b").glob("*.safetensors"))) > 2
  x = torch.randint(3, 97, (1, 9))
  again = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "b", attn_implementation="eager"
  )
  with torch.no_grad():
    np.testing.assert_allclose(again(x).logits, theirs(x).logits, atol=1e-5)
  jaxpeft.load(str(tmp_path / "b"))


def edit(directory, change):
  """Rewrites the tensors of a model directory."""
  path = directory / "model.safetensors"
  tensors = safetensors.numpy.load_file(path)
  change(tensors)
  safetensors.numpy.save_file(tensors, path)


NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda t: t.pop(NAME), f"missing {NAME}"),
    (lambda t: t.update(extra=t[NAME]), "unexpected extra"),
    (lambda t: t.update({NAME: t[NAME][:, :-1].copy()}), f"{NAME} is .80, 47., not"),
  ],
)
def test_tensors_that_do_not_fit_are_listed(tmp_path, change, message):
  save("llama", tmp_path)
  edit(tmp_path, change)
  with pytest.raises(jaxpeft.InputError, match=message):
    jaxpeft.load(str(tmp_path))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(model_type="bert"), "unknown model_type .* 'bert'"),
    (dict(hidden_act="relu"), "unknown activation"),
    (dict(num_experts=2), "field 'num_experts' = 2 is not supported"),
    (dict(rope_parameters=dict(rope_type="yarns")), "unknown rope_type"),
    (dict(hidden_size=None), None),
  ],
)
def test_configs_that_are_not_supported_name_the_field(tmp_path, change, message):
  save("llama", tmp_path)
  path = tmp_path / "config.json"
  values = json.loads(path.read_text()) | change
  if message is None:
    del values["hidden_size"]
    message = "field 'hidden_size' is missing"
  path.write_text(json.dumps(values))
  with pytest.raises(jaxpeft.InputError, match=message):
    jaxpeft.load(str(tmp_path))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize(
  "content",
  [
    b"\xff{}",
    b"[" * 100_000,
    b'{"a": ' + b"1" * 5000 + b"}",
    b'{"weight_map": {"a": 3}}',
  ],
  ids=["no utf-8", "nested", "huge number", "no names"],
)
def test_damaged_json_is_one_line(file, content, tmp_path):
  save("llama", tmp_path)
  (tmp_path / file).write_bytes(content)
  with pytest.raises(jaxpeft.InputError, match=file) as e:
    jaxpeft.load(str(tmp_path))
  assert "\n" not in str(e.value)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"x" * 99])
def test_damaged_safetensors_are_an_error(tmp_path, damage):
  save("llama", tmp_path)
  path = tmp_path / "model.safetensors"
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(jaxpeft.InputError, match=r"cannot read .*model\.safetensors"):
    jaxpeft.load(str(tmp_path))


def test_weights_that_lie_twice_on_the_hub_are_fetched_once(tmp_path, monkeypatch):
  hub = pytest.importorskip("huggingface_hub")
  fetched, asked = [], []

  def fetch(source, revision, **patterns):
    asked.append((source, revision))
    found = ["model.safetensors", "consolidated.safetensors", "tokenizer.json", "x.bin"]
    fetched.extend(hub.utils.filter_repo_objects(found, **patterns))
    return tmp_path

  monkeypatch.setattr(hub, "snapshot_download", fetch)
  hf.find("org/name")
  assert fetched == ["model.safetensors", "tokenizer.json"]
  hf.find("org/name@v1.0")
  assert asked == [("org/name", None), ("org/name", "v1.0")]


def test_pickled_weights_are_not_read(tmp_path):
  save("llama", tmp_path)
  (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
  with pytest.raises(jaxpeft.InputError, match="other formats are not read"):
    jaxpeft.load(str(tmp_path))


PEAK = """
import os, sys, jax, jax.numpy as jnp
import jaxpeft
from jaxpeft.checkpoints import hf
from jaxpeft.checkpoints.reader import SafetensorsReader
from jaxpeft import model
jax.block_until_ready(jnp.ones(2) + 1)

def anonymous():
  # Files mapped into memory do not count: the system drops them when it needs room.
  with open("/proc/self/status") as f:
    return 1024 * next(int(x.split()[1]) for x in f if x.startswith("RssAnon"))

import threading
peak, before, done = 0, anonymous(), False
def watch():
  global peak
  while not done:
    peak = max(peak, anonymous())
thread = threading.Thread(target=watch)
thread.start()
config = hf.read_config(sys.argv[1])
reader = SafetensorsReader(sys.argv[1])
params = jax.block_until_ready(hf.load(reader, config, "float32"))
done = True
thread.join()
size = sum(x.nbytes for x in jax.tree.leaves(params))
largest = config.vocab_size * config.width * 4
print(size, largest, peak - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_needs_no_more_than_the_model_and_one_tensor(tmp_path):
  config = jaxpeft.ModelConfig(
    "llama", 8192, 512, 8, 8, 8, 64, 2048, 512, bos_id=1, eos_ids=(2,)
  )
  from jaxpeft import model

  net = jaxpeft.Transformer(config, dtype="float32")
  hf_write.save(tmp_path / "m", config, model.init(net, 0))
  out = subprocess.run(
    [sys.executable, "-c", PEAK, str(tmp_path / "m")],
    check=True,
    capture_output=True,
    text=True,
  )
  size, tensor, peak = map(int, out.stdout.split())
  assert size > 150e6
  assert peak <= size + tensor + 8e6, "8 MB for the interpreter's own"


# ---- the adapter's file ----------------------------------------------------------


def adapted(seed=0, rules=None):
  model = jaxpeft.load("embedded", dtype="float32")
  rules = rules or {".*/attn/.*": jaxpeft.SVFT("random")}
  params = jaxpeft.adapt(model.params, rules, jax.random.key(seed))
  return jaxpeft.partition(params, jaxpeft.trainable_mask(params))


def mark(frozen):
  from jaxpeft import tree
  from jaxpeft.checkpoints import fingerprint as fingerprints

  return fingerprints.fingerprint(tree.flatten(frozen))


def test_adapter_files_hold_theta_and_nothing_else(tmp_path):
  trainable, frozen = adapted()
  trainable = jax.tree.map(lambda x: x + 1.5, trainable)
  adapter_files.save(tmp_path / "a", trainable, dict(fingerprint=mark(frozen)))
  adapter_files.save(tmp_path / "a", trainable, dict(fingerprint=mark(frozen)))
  assert [p.name for p in tmp_path.iterdir()] == ["a"], "nothing is left behind"
  got = adapter_files.load(tmp_path / "a", trainable, mark(frozen))
  chex.assert_trees_all_equal(got, trainable)
  size = sum(x.nbytes for x in jax.tree.leaves(trainable))
  assert (tmp_path / "a/adapter.safetensors").stat().st_size < size + 4096


def test_a_run_goes_on_from_the_gradients_it_started_from(tmp_path):
  from jaxpeft import adapters, config, experiment

  c = config.base()
  c.data.limit, c.data.eval = 60, ""
  main = dict(match=".*/attn/q", name="LoRAGA", rank=2, batches=2)
  c.adapt.main, c.adapt.more = main, dict(match=".*/mlp/up", name="LoRAOne")
  prepared = experiment.prepare(c)
  run = experiment.make(c, prepared)
  kept = adapters.kept(run.frozen)
  assert kept.keys() == {f"layers_0/attn/q/frozen/{name}" for name in ("a0", "b0")}
  assert min(float(jnp.abs(x).max()) for x in kept.values()) > 0
  run.save_adapter(tmp_path / "start", run.state.trainable)
  again = experiment.make(c, prepared, start=tmp_path / "start")
  chex.assert_trees_all_equal(again.frozen, run.frozen)
  assert again.meta == run.meta
  got = adapter_files.load(
    tmp_path / "start", again.state.trainable, again.meta["fingerprint"]
  )
  chex.assert_trees_all_equal(got, run.state.trainable)
  # As many microbatches as one likes: the gradient is of all tokens.
  with c.unlocked():
    c.train.accumulate = 4
  micro = experiment.make(c, prepared)
  for path, x in adapters.kept(micro.frozen).items():
    np.testing.assert_allclose(x, kept[path], atol=2e-3)
  c.adapt.main.batches = 4
  more = experiment.make(c, prepared)
  moved = adapters.kept(more.frozen)["layers_0/attn/q/frozen/a0"]
  assert float(jnp.abs(moved - kept["layers_0/attn/q/frozen/a0"]).max()) > 1e-2


def test_an_adapter_of_another_base_or_pattern_or_shape_is_refused(tmp_path):
  trainable, frozen = adapted()
  adapter_files.save(tmp_path / "a", trainable, dict(fingerprint=mark(frozen)))
  _, other = adapted(seed=1)  # another random pattern
  with pytest.raises(jaxpeft.InputError, match="trained on another base"):
    adapter_files.load(tmp_path / "a", trainable, mark(other))
  changed = jax.tree.map(lambda x: x * 1.01 if x.dtype == jnp.float32 else x, frozen)
  with pytest.raises(jaxpeft.InputError, match="trained on another base"):
    adapter_files.load(tmp_path / "a", trainable, mark(changed))
  wider, frozen = adapted(rules={".*/attn/.*": jaxpeft.SVFT("random", 3)})
  with pytest.raises(jaxpeft.InputError, match=r"trained on another base|does not fit"):
    adapter_files.load(tmp_path / "a", wider, mark(frozen))


def test_a_run_s_state_comes_back_bit_for_bit(tmp_path):
  trainable, _ = adapted()
  tx = optax.adam(1e-3)
  start = training.init_state(trainable, tx)
  noise = jax.tree.map(lambda x: x + jnp.asarray(0.1).astype(x.dtype), start)
  noise = noise._replace(step=jnp.int32(7))
  store = run_state.Checkpoints(tmp_path / "c")
  store.save(noise, dict(note=1))
  store.close()
  store = run_state.Checkpoints(tmp_path / "c")
  assert store.latest == 7
  got, extra = store.restore(start)
  chex.assert_trees_all_equal(got, noise)
  assert extra == dict(note=1)
  other = training.init_state(adapted(rules={".*/q": jaxpeft.LoRA()})[0], tx)
  with pytest.raises(jaxpeft.InputError, match="cannot resume from step 7"):
    store.restore(other)
  store.close()


# ---- damaged checkpoints ---------------------------------------------------------


def two_steps(directory):
  """Checkpoints of steps 3 and 5, and the states that they hold."""
  x = jnp.arange(600, dtype=jnp.float32).reshape(20, 30)
  states = {}
  store = run_state.Checkpoints(directory)
  for step in (3, 5):
    theta = dict(a=x * step, b=x.astype(jnp.bfloat16) - step)
    states[step] = training.TrainState(theta, (), jnp.int32(step), jnp.int32(-1))
    store.save(states[step], dict(note=step))
  store.close()
  return states


def files(directory):
  return sorted(p for p in directory.rglob("*") if p.is_file() and p.stat().st_size)


def flip(path, place):
  data = bytearray(path.read_bytes())
  data[int(place * (len(data) - 1))] ^= 0x10
  path.write_bytes(data)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_flipped_byte_anywhere_is_found_or_harmless(tmp_path):
  """Also where Orbax itself would return wrong numbers without a word."""
  states = two_steps(tmp_path / "good")
  went_back = 0
  names = [p.relative_to(tmp_path / "good") for p in files(tmp_path / "good/5")]
  assert any("ocdbt" in str(name) or "/d/" in str(name) for name in names)
  for name in names:
    for place in (0.0, 0.5, 0.9):
      directory = tmp_path / "copy"
      shutil.rmtree(directory, ignore_errors=True)
      shutil.copytree(tmp_path / "good", directory)
      flip(directory / name, place)
      store = run_state.Checkpoints(directory)
      got, extra = store.restore(states[3])
      step = extra["note"]
      chex.assert_trees_all_equal(got, states[step])
      assert store.latest == step
      went_back += step == 3
      store.close()
  assert went_back >= 5


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("what", ["flip", "truncate", "no state", "no extra", "empty"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_is_used(
  what, tmp_path, capsys
):
  states = two_steps(tmp_path / "c")
  newest = tmp_path / "c" / "5"
  data = max(files(newest / "state"), key=lambda p: p.stat().st_size)
  if what == "flip":  # in numbers that no compression guards
    flip(data, 0.5)
  elif what == "truncate":
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
  elif what == "empty":
    data.write_bytes(b"")
  else:
    shutil.rmtree(newest / what.split()[1])
  store = run_state.Checkpoints(tmp_path / "c")
  got, extra = store.restore(states[3])
  chex.assert_trees_all_equal(got, states[3])
  assert extra == dict(note=3)
  told = capsys.readouterr().err.splitlines()
  assert len(told) == 1
  assert "step 5 is damaged" in told[0]
  assert "going back to step 3" in told[0]
  # The step can be saved again, and is then what a run goes on from.
  assert store.latest == 3
  store.save(states[5], dict(note="again"))
  store.close()
  store = run_state.Checkpoints(tmp_path / "c")
  got, extra = store.restore(states[3])
  chex.assert_trees_all_equal(got, states[5])
  assert extra == dict(note="again")
  store.close()


def test_a_half_written_checkpoint_is_not_seen(tmp_path):
  states = two_steps(tmp_path / "c")
  (tmp_path / "c" / "5").rename(tmp_path / "c" / "5.orbax-checkpoint-tmp")
  store = run_state.Checkpoints(tmp_path / "c")
  assert store.latest == 3
  store.save(states[5], dict(note=5))
  store.close()
  store = run_state.Checkpoints(tmp_path / "c")
  assert store.restore(states[3])[1] == dict(note=5)
  store.close()


def test_when_no_checkpoint_is_good_nothing_is_touched(tmp_path):
  states = two_steps(tmp_path / "c")
  for step in (3, 5):
    shutil.rmtree(tmp_path / "c" / str(step) / "state")
  store = run_state.Checkpoints(tmp_path / "c")
  with pytest.raises(jaxpeft.InputError, match=r"no checkpoint in .*step 5.*step 3"):
    store.restore(states[3])
  assert {p.name for p in (tmp_path / "c").iterdir()} == {"3", "5"}
  store.close()


def test_another_config_s_checkpoint_is_refused_not_skipped(tmp_path):
  states = two_steps(tmp_path / "c")
  store = run_state.Checkpoints(tmp_path / "c")
  for name, other in (
    ("trainable/a", states[3].trainable | dict(a=jnp.zeros((20, 31)))),
    ("trainable/b", states[3].trainable | dict(b=jnp.zeros((20, 30)))),
    ("trainable/c", states[3].trainable | dict(c=jnp.zeros(2))),
  ):
    with pytest.raises(jaxpeft.InputError, match=f"step 5 .*: {name} is "):
      store.restore(states[3]._replace(trainable=other))
  assert {p.name for p in (tmp_path / "c").iterdir()} == {"3", "5"}
  store.close()


def test_checksums_see_each_bit_and_place_and_no_mesh():
  x = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
  whole = run_state._checksum(jnp.array(x)).tolist()
  mesh = jax.make_mesh((4, 2), ("a", "b"))
  for spec in (("a", "b"), ("b",), (None, ("a", "b")), ()):
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    assert run_state._checksum(jax.device_put(x, place)).tolist() == whole
  seen = {tuple(whole)}
  for bit in range(32):
    y = x.copy()
    y.view(np.uint32)[3, 5] ^= np.uint32(1 << bit)
    seen.add(tuple(run_state._checksum(jnp.array(y)).tolist()))
  y = x.copy()
  y[[0, 1]] = y[[1, 0]]
  seen.add(tuple(run_state._checksum(jnp.array(y)).tolist()))
  y = -x  # every sign bit: what a plain weighted sum would miss
  seen.add(tuple(run_state._checksum(jnp.array(y)).tolist()))
  assert len(seen) == 1 + 32 + 2
  for dtype in ("bfloat16", "int8", "bool", "int32"):
    y = jnp.array(x).astype(dtype)
    other = y.at[3, 5].set(~y[3, 5] if dtype == "bool" else y[3, 5] + 1)
    assert run_state._checksum(y).tolist() != run_state._checksum(other).tolist()


_TEXT = dict(
  vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=3,
  num_attention_heads=4, num_key_value_heads=2, head_dim=16, eos_token_id=2,
)  # fmt: skip
_IMAGES = dict(
  hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
  image_size=8, patch_size=4,
)  # fmt: skip


@pytest.mark.parametrize("old_names", [False, True])
@pytest.mark.parametrize("kind", ["Gemma3", "Mistral3"])
def test_the_language_model_of_a_model_of_images_opens(kind, old_names, tmp_path):
  text = _TEXT | dict(model_type=dict(Gemma3="gemma3_text", Mistral3="mistral")[kind])
  see = dict(Gemma3="siglip_vision_model", Mistral3="pixtral")[kind]
  config = getattr(transformers, f"{kind}Config")(
    text_config=text, vision_config=_IMAGES | dict(model_type=see),
    image_token_index=90,
    mm_tokens_per_image=4, image_token_id=90, eos_token_id=2,
  )  # fmt: skip
  torch.manual_seed(0)
  theirs = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
  save("llama", tmp_path)  # the tokenizer's files
  theirs.save_pretrained(tmp_path)
  path = tmp_path / "model.safetensors"
  tensors = safetensors.numpy.load_file(path)
  # Old files say language_model.model., new ones model.language_model.
  names = ("model.language_model.", "language_model.model.")
  tensors = {
    name.replace(*(names if old_names else names[::-1])): x
    for name, x in tensors.items()
  }
  assert any(name.startswith(names[old_names]) for name in tensors)
  safetensors.numpy.save_file(tensors, path)
  ours = jaxpeft.load(str(tmp_path), dtype="float32")
  x = np.random.default_rng(0).integers(3, 89, (2, 20))
  with torch.no_grad():
    want = theirs(input_ids=torch.tensor(x)).logits.numpy()
  np.testing.assert_allclose(ours(x), want, atol=1e-4)
