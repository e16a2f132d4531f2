"""Push and pull, against a small hub on this machine and the hub's own libraries."""

import json
import shutil
import sys

import jax
import numpy as np
import pytest

import jaxpeft
from jaxpeft import assets, config, experiment
from jaxpeft.checkpoints import adapter as adapter_files
from jaxpeft.export import verify
from jaxpeft.hub import card, client, facts, pull, push
from tests.support import hub as hubs

huggingface_hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("huggingface_hub.constants")
pytest.importorskip("huggingface_hub.utils._http")
TOKEN = "hf_thisisnotarealtoken"
FINAL = dict(
  step=200, final=True, adapter_step=150, eval_loss=0.51239, first_eval_loss=1.9731,
  trainable_parameters=4096, adapter_bytes=16384, accuracy=0.975, base_accuracy=0.0,
  accuracy_ci95=[0.943, 0.989], problems=200, wall_s=91.0, elapsed_s=92.4,
  data=["embedded:two_step/train: 8000 examples, 99 tokens, 9 supervised",
        "embedded:two_step/test: 256 examples, 9 tokens, 5 supervised"],
)  # fmt: skip


@pytest.fixture
def hub(monkeypatch):
  """A hub that huggingface_hub uses, logged in."""
  with hubs.running() as found:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", found.url)
    template = f"{found.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(
      huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """The directory of a finished run of the toy, with an adapter that does something."""
  folder = tmp_path_factory.mktemp("runs") / "mine"
  c = config.base()
  c.adapt.main = dict(name="LoRA", match=".*/attn/q", rank=4, alpha=8.0)
  (folder / "adapter").mkdir(parents=True)
  base = experiment.read_base(c)
  key = jax.random.fold_in(jax.random.key(c.seed), 1)
  rules = {".*/attn/q": jaxpeft.LoRA(rank=4, alpha=8.0)}
  params = jaxpeft.adapt(base.params, rules, key)
  trainable, frozen = jaxpeft.partition(params, jaxpeft.trainable_mask(params))
  meta = adapter_files.describe(params, key, adapter_files.fingerprint(frozen))
  trainable = jax.tree.map(
    lambda x: x + 0.05 * jax.random.normal(jax.random.key(5), x.shape), trainable
  )
  adapter_files.save(folder / "adapter", trainable, meta)
  (folder / "config.json").write_text(json.dumps(config.to_json(c)))
  (folder / "metrics.jsonl").write_text(json.dumps(FINAL) + "\n")
  (folder / "data.json").write_text(json.dumps({"data.eval": "sha256:abc"}))
  return folder


@pytest.fixture
def quick(monkeypatch):
  """No export, whose tests are elsewhere: a file in its place."""

  def export(workdir, format, directory, *_):
    directory = directory.parent if format == "gguf" else directory
    directory.mkdir(exist_ok=True)
    (directory / "adapter_config.json").write_text("{}")
    return "logits differ by at most 1e-6"

  monkeypatch.setattr(verify, "export_run", export)


OPTIONS = push.Options(base="org/base", license="apache-2.0")


@pytest.fixture
def written(run, quick, tmp_path):
  """What `push` would upload, but for the weights."""
  push.write(run, "me/mine", tmp_path / "files", OPTIONS)
  return tmp_path / "files"


@pytest.mark.slow
def test_pushed_pulled_and_opened_by_peft(hub, run, tmp_path):
  written = tmp_path / "files"
  assert "logits differ by at most" in push.write(run, "me/mine", written, OPTIONS)
  url = push.upload(written, "me/mine", private=True, revision="v1")
  assert url == f"{hub.url}/me/mine/commit/{hubs.SHA}"
  assert hub.private == {"me/mine"}
  assert hub.branches == [("me/mine", "v1")]
  files = hub.repos["me/mine"]
  assert set(files) == {
    "README.md", "adapter_config.json", "adapter_model.safetensors"
  }  # fmt: skip
  assert any(token for *_, token in hub.seen)
  assert not any(TOKEN.encode() in body for body in files.values())

  out = tmp_path / "got"
  said = pull.pull("me/mine@main", out)
  assert "an adapter in PEFT's format, LORA of rank 4, for org/base" in said
  assert f"chat --model=org/base --adapter=mine={out}" in said
  assert {x.name: x.read_bytes() for x in out.iterdir()} == files

  peft = pytest.importorskip("peft")
  transformers = pytest.importorskip("transformers")
  import torch

  theirs = transformers.AutoModelForCausalLM.from_pretrained(assets.TINY)
  theirs = peft.PeftModel.from_pretrained(theirs.float().eval(), out)
  ids = np.arange(5, 25)[None]
  with torch.no_grad():
    logits = theirs(torch.tensor(ids)).logits.numpy()
  model = jaxpeft.load_run(run)
  np.testing.assert_allclose(logits, model(ids), atol=2e-3)
  base = jaxpeft.load("embedded", dtype="float32")
  assert np.abs(logits - base(ids)).max() > 0.1
  again = jaxpeft.load_adapter(base.params, out)
  np.testing.assert_allclose(base.replace(params=again)(ids), model(ids), atol=2e-4)


def test_the_card_is_what_the_hub_reads(written):
  read = huggingface_hub.ModelCard.load(written / "README.md")
  data = read.data
  assert data.base_model == "org/base"
  assert data.library_name == "peft"
  assert data.license == "apache-2.0"
  assert data.tags == ["jaxpeft", "lora"]
  assert data.pipeline_tag == "text-generation"
  found = {x.metric_type: x for x in data.eval_results}
  assert found["accuracy"].metric_value == 0.975
  assert found["loss"].metric_value == 0.5124
  assert found["accuracy"].dataset_name == "embedded:two_step/test"
  # The library's own way to write results accepts and repeats them.
  again = huggingface_hub.metadata_eval_result(
    model_pretty_name="mine", task_pretty_name="x", task_id="text-generation",
    metrics_pretty_name="a", metrics_id="accuracy", metrics_value=0.975,
    dataset_pretty_name="d", dataset_id="custom",
  )  # fmt: skip
  keys = again["model-index"][0]["results"][0].keys()
  ours = data.to_dict()["model-index"][0]
  assert ours["name"] == "mine"
  assert keys <= ours["results"][0].keys() | {"source"}


def test_the_card_states_method_data_and_what_was_measured(written, run):
  text = (written / "README.md").read_text()
  for part in (
    "`org/base` fine-tuned by LoRA",
    "4,096 trained parameters",
    "LoRA (alpha=8.0, rank=4)",
    "`.*/attn/q`",
    "`embedded:two_step/train`; 8000 examples",
    "`embedded:two_step/test`, hash sha256:abc; 256 examples",
    "200 of 16 rows of 192 tokens; the adapter is that of step 150",
    "learning rate 0.001",
    "| seed | 0 |",
    "| 0.0% | 97.5% (95 % interval 94.3% to 98.9%) |",
    "| 1.9731 | 0.5124 |",
    'PeftModel.from_pretrained(model, "me/mine")',
    "python -m jaxpeft pull --from=me/mine --out=adapter",
    "logits differ by at most",
  ):
    assert part in text, part
  values = json.loads((written / "adapter_config.json").read_text())
  assert values["base_model_name_or_path"] == "org/base"
  assert str(run.parent) not in text


@pytest.mark.parametrize(
  ("format", "library", "part"),
  [
    ("hf", "transformers", 'AutoModelForCausalLM.from_pretrained("me/mine")'),
    ("gguf", None, "chat --model=model"),
  ],
)
def test_cards_of_merged_models(run, format, library, part):
  text = card.make(facts.of(run), "me/mine", format, None, None, "equal")
  data = huggingface_hub.ModelCard(text).data
  assert data.library_name == library
  assert data.base_model is None
  assert "license" not in data.to_dict()
  assert part in text


def test_paths_of_this_machine_are_not_on_a_card(run, tmp_path):
  c = config.base()
  c.adapt.main = dict(name="LoRA", match=".*")
  c.model.source = str(tmp_path / "model.gguf")
  c.data.train = str(tmp_path / "train.jsonl")
  c.data.eval = "openai/gsm8k:main[test]"
  found = facts.of(run)._replace(config=c)
  text = card.make(found, "me/mine", "peft", None, None, "equal")
  assert str(tmp_path) not in text
  assert "`model.gguf`" in text
  assert "`train.jsonl`" in text
  assert huggingface_hub.ModelCard(text).data.datasets == ["openai/gsm8k"]
  assert "BASE is the base model" in text


def test_a_card_does_not_call_training_data_held_out(run):
  for held, said in (
    ("b", "which was not trained on"),
    ("a", "which **was trained on"),
  ):
    found = facts.of(run)._replace(hashes={"data.train": "a", "data.eval": held})
    assert said in card.make(found, "me/mine", "peft", None, None, "equal")


def test_a_run_without_held_out_data_has_no_results(run):
  found = facts.of(run)
  final = {k: v for k, v in FINAL.items() if "acc" not in k and "eval_loss" not in k}
  c = config.base()
  c.data.eval = ""
  text = card.make(
    found._replace(final=final, config=c), "me/mine", "peft", "a/b", None, "equal"
  )
  assert huggingface_hub.ModelCard(text).data.eval_results is None
  assert "Nothing was measured" in text


def test_runs_that_cannot_be_pushed(run, tmp_path, quick):
  cases = {
    "is no run": tmp_path / "none",
    "its training is not finished": tmp_path / "half",
    "has no final line": tmp_path / "almost",
  }
  (tmp_path / "half").mkdir()
  shutil.copytree(run, tmp_path / "almost")
  shutil.copy(run / "config.json", tmp_path / "half")
  (tmp_path / "almost" / "metrics.jsonl").write_text('{"step": 3}\n')
  for message, folder in cases.items():
    with pytest.raises(jaxpeft.InputError, match=message):
      push.write(folder, "me/mine", tmp_path / "out")
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "x").touch()
  for repo, out, message in (
    ("me/mine", tmp_path / "full", "is not empty; choose another --out"),
    ("mine", tmp_path / "out", "--to=mine is no name of a repository"),
    ("a/../b", tmp_path / "out", "no name of a repository"),
  ):
    with pytest.raises(jaxpeft.InputError, match=message):
      push.write(run, repo, out)
  assert not (tmp_path / "out").exists()
  assert not list(tmp_path.glob(".push-*"))
  push.write(run, "me/mine", tmp_path / "out")
  assert (tmp_path / "out" / "README.md").exists()


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_hub_that_refuses_is_one_line(hub, tmp_path, status, monkeypatch):
  monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda _: None)
  hub.refuse = status
  (tmp_path / "README.md").write_text("x")
  with pytest.raises(jaxpeft.InputError) as e:
    push.upload(tmp_path, "me/mine", False, None)
  message = str(e.value)
  assert message.startswith("pushing to me/mine: ")
  assert "\n" not in message
  assert TOKEN not in message
  assert ("no permission" in message) == (status != 500)


def test_without_network_or_library_it_is_one_line(hub, tmp_path, monkeypatch):
  monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
  with pytest.raises(jaxpeft.InputError, match="the hub cannot be reached"):
    pull.pull("me/mine", tmp_path / "out")
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
  with pytest.raises(jaxpeft.InputError, match="offline mode is enabled"):
    pull.pull("me/mine", tmp_path / "out")
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(jaxpeft.InputError, match=r"pip install -e '\.\[hub\]'"):
    pull.pull("me/mine", tmp_path / "out")
  assert not list(tmp_path.iterdir())


def test_tokens_are_not_repeated():
  with pytest.raises(jaxpeft.InputError) as e, client.one_line("x"):
    raise ValueError(f"bad header Bearer {TOKEN}, {TOKEN}")
  assert "hf_" not in str(e.value)


def test_pickles_and_code_are_not_pulled(hub, tmp_path):
  weights = b"x" * 10
  hub.repos["a/pickle"] = {"pytorch_model.bin": weights, "config.json": b"{}"}
  with pytest.raises(jaxpeft.InputError, match=r"pytorch_model\.bin is a pickle"):
    pull.pull("a/pickle", tmp_path / "one")
  hub.repos["a/empty"] = {"README.md": b"hello"}
  with pytest.raises(jaxpeft.InputError, match=r"no weights as safetensors or GGUF$"):
    pull.pull("a/empty", tmp_path / "one")
  assert not list(tmp_path.iterdir())
  tiny = {x.name: x.read_bytes() for x in assets.TINY.iterdir() if x.is_file()}
  unwanted = [
    "training_args.bin",
    "modeling.py",
    ".env.json",
    "consolidated.safetensors",
  ]
  hub.repos["a/model"] = tiny | dict.fromkeys(unwanted, weights)
  said = pull.pull("a/model", tmp_path / "two")
  assert {x.name for x in (tmp_path / "two").iterdir()} == {
    name for name in tiny if name.endswith(pull._WANTED)
  }
  assert "a model of family llama, 4 layers of width 128" in said
  assert f"chat --model={tmp_path / 'two'}" in said


def test_what_cannot_be_pulled(hub, tmp_path, monkeypatch):
  hub.repos["a/model"] = {"model.safetensors": b"x"}
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "x").touch()
  for source, out, message in (
    ("a/none", "out", "there is no such repository"),
    ("a/model@v9", "out", "there is no such revision"),
    ("model", "out", "--from=model is no name"),
    ("a/model", "full", "is not empty"),
  ):
    with pytest.raises(jaxpeft.InputError, match=message):
      pull.pull(source, tmp_path / out)
  monkeypatch.setattr(pull, "_SPARE", 1 << 60)
  with pytest.raises(jaxpeft.InputError, match="GB free; choose an --out"):
    pull.pull("a/model", tmp_path / "out")
  hub.repos["a/model"] = {"a\\model.safetensors": b"x"}
  with pytest.raises(jaxpeft.InputError, match="a file with the name"):
    pull.pull("a/model", tmp_path / "out")
  assert [x.name for x in tmp_path.iterdir()] == ["full"]


def test_something_that_cannot_be_opened_is_said(hub, tmp_path):
  hub.repos["a/odd"] = {"model.safetensors": b"x", "config.json": b"{}"}
  assert "jaxpeft cannot open it" in pull.pull("a/odd", tmp_path / "a")
  hub.repos["a/bad"] = {"adapter_model.safetensors": b"x", "adapter_config.json": b"["}
  assert "adapter_config.json is damaged" in pull.pull("a/bad", tmp_path / "b")
