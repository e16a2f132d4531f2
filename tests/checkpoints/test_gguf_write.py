"""Writing GGUF files: what llama.cpp's converter would write, and what others open."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import gguf
import jax
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers

import jaxpeft
from jaxpeft import assets
from jaxpeft.checkpoints import gguf_tokenizer, gguf_vocabulary
from jaxpeft.data import tokenizer
from jaxpeft.errors import InputError
from tests.checkpoints.test_gguf_tokenizer import HARD, byte_level, sentencepiece
from tests.checkpoints.test_gguf_tokenizer import from_transformers as parts_of
from tests.support import gguf_files

ROOT = pathlib.Path(__file__).parents[2]
DEFAULT = ("llama3", "mixtral", "gemma2")
CASES = [
  pytest.param(name, marks=[] if name in DEFAULT else pytest.mark.slow)
  for name in gguf_files.ARCHITECTURES
]
# Facts about a file or defaults, which the two writers need not agree on.
FREE = ("general.name", "general.type", "general.file_type", "vocab_size")
WIDE = dict(hidden_size=64, intermediate_size=96)
TOKENS = np.random.default_rng(0).integers(0, 97, (2, 24))


def contents(path):
  """({key: value}, {name: tensor}) as the `gguf` package reads them."""
  file = gguf.GGUFReader(path)
  meta = {k: v.contents() for k, v in file.fields.items() if not k.startswith("GGUF")}
  return meta, {t.name: t for t in file.tensors}


@pytest.mark.parametrize("name", CASES)
def test_a_file_holds_what_the_converter_would_write(tmp_path, name):
  gguf_files.write(gguf_files.make(name), name, tmp_path / "theirs.gguf")
  model = jaxpeft.load(str(tmp_path / "theirs.gguf"), dtype="float32")
  save(model, tmp_path / "ours.gguf", "float32")
  theirs, ours = contents(tmp_path / "theirs.gguf"), contents(tmp_path / "ours.gguf")
  assert ours[1].keys() == theirs[1].keys()
  for key, tensor in theirs[1].items():
    assert ours[1][key].tensor_type == tensor.tensor_type, key
    assert ours[1][key].shape.tolist() == tensor.shape.tolist(), key
    near = 1e-5 if key.startswith("rope") or "norm" in key else 0.0
    np.testing.assert_allclose(ours[1][key].data, tensor.data, near, near, err_msg=key)
  for key, value in theirs[0].items():
    if not key.endswith(FREE):
      assert ours[0][key] == value, key


def save(model, path, dtype=None):
  from jaxpeft.export.save import save_gguf

  save_gguf(model, path, dtype)


# transformers does not read these values from a file, and takes its own defaults.
GEMMA = dict(head_dim=256, query_pre_attn_scalar=256)
DEFAULTS = {
  "llama": {},
  "mistral": {},
  "qwen2": {},
  "qwen3": dict(head_dim=128),
  "gemma2": GEMMA | dict(attn_logit_softcapping=50.0, final_logit_softcapping=30.0),
  "gemma3": GEMMA
  | dict(
    final_logit_softcapping=None,
    rope_parameters=dict(
      full_attention=dict(rope_type="default", rope_theta=1e6),
      sliding_attention=dict(rope_type="default", rope_theta=1e4),
    ),
  ),
}


@pytest.mark.parametrize(
  "name",
  [pytest.param(n, marks=[pytest.mark.slow] * (n != "llama")) for n in DEFAULTS],
)
def test_transformers_opens_the_file_with_the_same_logits(tmp_path, name):
  path = tmp_path / "theirs.gguf"
  gguf_files.write(gguf_files.make(name, **WIDE | DEFAULTS[name]), name, path)
  model = jaxpeft.load(str(path), dtype="float32")
  rule = {"layers_.*/attn/.*": jaxpeft.LoRA(rank=2)}
  params = jaxpeft.adapt(model.params, rule, jax.random.key(0))
  trained, frozen = jaxpeft.partition(params, jaxpeft.trainable_mask(params))
  trained = jax.tree.map(lambda x: x + 0.05, trained)
  adapted = model.replace(params=jaxpeft.combine(trained, frozen))
  save(adapted, tmp_path / "ours.gguf", "float32")
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, gguf_file="ours.gguf", dtype=torch.float32, attn_implementation="eager"
  )
  with torch.no_grad():
    logits = theirs(torch.from_numpy(TOKENS)).logits.numpy()
  ours = np.asarray(adapted(TOKENS))
  assert np.abs(ours - np.asarray(model(TOKENS))).max() > 0.1
  assert np.abs(ours - logits).max() < 1e-4 * np.abs(logits).max()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "q8_0"])
def test_rounded_weights_are_those_of_the_gguf_package(tmp_path, dtype):
  gguf_files.write(gguf_files.make("mixtral"), "mixtral", tmp_path / "theirs.gguf")
  model = jaxpeft.load(str(tmp_path / "theirs.gguf"), dtype="float32")
  save(model, tmp_path / "ours.gguf", dtype)
  kind = dict(float16="F16", bfloat16="BF16", q8_0="Q8_0")[dtype]
  kind = gguf.GGMLQuantizationType[kind]
  seen = set()
  theirs = contents(tmp_path / "theirs.gguf")[1]
  for key, tensor in contents(tmp_path / "ours.gguf")[1].items():
    w, got = theirs[key].data, tensor.tensor_type
    plain = w.ndim == 1 or "ffn_gate_inp" in key
    divides = w.shape[-1] % 32 == 0 or dtype != "q8_0"
    f32, f16 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16
    assert got == (f32 if plain else kind if divides else f16), key
    assert np.array_equal(tensor.data, gguf.quants.quantize(w, got)), key
    seen.add(got)
  assert kind in seen or dtype == "q8_0"


def test_q8_0_is_used_where_it_divides(tmp_path):
  model = jaxpeft.load("embedded", dtype="float32")
  save(model, tmp_path / "ours.gguf", "q8_0")
  save(model, tmp_path / "whole.gguf", "float32")
  whole = contents(tmp_path / "whole.gguf")[1]
  kind = gguf.GGMLQuantizationType.Q8_0
  for key, tensor in contents(tmp_path / "ours.gguf")[1].items():
    if whole[key].data.ndim > 1:
      assert tensor.tensor_type == kind
      assert np.array_equal(tensor.data, gguf.quants.quantize(whole[key].data, kind))


def of_core(core, special):
  files = {
    "tokenizer.json": core.to_str().encode(),
    "tokenizer_config.json": json.dumps(special).encode(),
  }
  return tokenizer.from_files(files, "here")


def written(core, special, size=1000):
  """(metadata that are written for a tokenizer, the tokenizer that is read back)."""
  model = jaxpeft.load("embedded", dtype="float32")
  config = dataclasses.replace(model.config, vocab_size=size, eos_ids=())
  meta = gguf_vocabulary.metadata(of_core(core, special), config, "llama")
  arrays = {
    k: np.array(v) for k, v in meta.items() if k.endswith(("token_type", "scores"))
  }
  files = gguf_tokenizer.files(meta | arrays, "x.gguf")
  return meta, tokenizer.from_files(files, "x.gguf")


@pytest.mark.parametrize("name", ["smollm", "llama-bpe", "deepseek-r1-qwen", "spm"])
def test_tokenizers_survive(name):
  if name == "spm":
    core, meta = sentencepiece(True)
    special = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
  else:
    smollm = [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
    core, meta = byte_level(name, smollm if name == "smollm" else parts_of(name))
    core.model.ignore_merges = name == "llama-bpe"
    special = dict(bos_token="<|im_start|>", eos_token="<|im_end|>")
  made, back = written(core, special)
  for text in HARD:
    assert back.encode(text) == core.encode(text, add_special_tokens=False).ids, text
  count = len(meta["tokenizer.ggml.tokens"])
  for key in ("tokens", "token_type", "model", "bos_token_id", "eos_token_id", "pre"):
    value = meta.get(f"tokenizer.ggml.{key}", "default")
    value = value.tolist() if isinstance(value, np.ndarray) else value
    found = made[f"tokenizer.ggml.{key}"]
    assert (found[:count] if isinstance(found, list) else found) == value, key
  assert made["tokenizer.ggml.tokens"][-1] == "[PAD999]"
  assert made["tokenizer.ggml.token_type"][-1] == 5


def test_tokenizers_that_llama_cpp_does_not_know_are_refused():
  special = dict(eos_token="<|im_end|>")
  unigram = tokenizers.Tokenizer(models.Unigram([("a", 0.0)], 0))
  with pytest.raises(InputError, match="type 'Unigram', only BPE"):
    written(unigram, {})
  words = [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel()]
  core, _ = byte_level("x", words)
  with pytest.raises(InputError, match="no name for its pre-tokenizer"):
    written(core, special)
  core, _ = byte_level("x", parts_of("qwen2"))
  with pytest.raises(InputError, match="for a model of 100 tokens"):
    written(core, special, size=100)
  core.normalizer = tokenizers.normalizers.Lowercase()
  with pytest.raises(InputError, match="other ids"):
    written(core, special)


def test_models_that_gguf_cannot_hold_are_refused_and_leave_no_file(tmp_path):
  gguf_files.write(gguf_files.make("llama"), "llama", tmp_path / "a.gguf")
  model = jaxpeft.load(str(tmp_path / "a.gguf"), dtype="float32")
  for changes, said in (
    (dict(windows=(5, 5, 5)), "windows is"),
    (dict(family="ministral3"), "unknown family for --format=gguf 'ministral3'"),
  ):
    config = dataclasses.replace(model.config, **changes)
    net = model.transformer.clone(config=config)
    with pytest.raises(InputError, match=said):
      save(model.replace(transformer=net), tmp_path / "b.gguf")
    assert not (tmp_path / "b.gguf").exists()
  with pytest.raises(InputError, match="unknown dtype of a GGUF file 'int4'"):
    save(model, tmp_path / "b.gguf", "int4")


@pytest.mark.slow
def test_a_run_is_exported_and_trained_on_again(tmp_path):
  from jaxpeft.export import verify

  def train(workdir, *options):
    command = [sys.executable, ROOT / "train.py", f"--config={ROOT}/configs/lora.py"]
    command += [f"--workdir={workdir}", "--config.train.steps=3", "--config.eval.task="]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([*command, *options], check=True, cwd=tmp_path, env=env)

  train(tmp_path / "run")
  with pytest.raises(InputError, match="writes one file"):
    verify.export_run(tmp_path / "run", "gguf", tmp_path / "x", None, None, None)
  with pytest.raises(InputError, match="does not apply to --format=hf"):
    verify.export_run(tmp_path / "run", "hf", tmp_path / "x", "q8_0", None, None)
  out = tmp_path / "merged.gguf"
  for dtype in ("q8_0", "float32"):
    out.unlink(missing_ok=True)
    text = verify.export_run(tmp_path / "run", "gguf", out, dtype, None, None)
    assert "greedy tokens agree" in text
  with pytest.raises(InputError, match="is not empty"):
    verify.export_run(tmp_path / "run", "gguf", out, None, None, None)
  other = tmp_path / "other.gguf"
  with pytest.raises(InputError, match="not exported: logits differ"):
    verify.export_run(tmp_path / "run", "gguf", other, "q8_0", None, 1e-6)
  assert not other.exists()
  train(tmp_path / "again", f"--config.model.source={out}")
  toy = tokenizer.load(assets.TINY)
  model = jaxpeft.load(str(out), dtype="float32")
  assert model.tokenizer.encode("12+13?", bos=True) == toy.encode("12+13?", bos=True)
