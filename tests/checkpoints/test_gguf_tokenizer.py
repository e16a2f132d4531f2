"""Tokenizers in GGUF files: the ids are those of the tokenizer that was converted."""

import json

import gguf
import numpy as np
import pytest
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from transformers.tokenization_utils_base import generate_merges

from jaxpeft.checkpoints import gguf_file, gguf_pretokenizers, gguf_tokenizer
from jaxpeft.data import tokenizer as ours
from jaxpeft.errors import InputError

HARD = [
  "", " ", "  ", "\n", "\n\n \n", "a 1 22 333 4444", "costs $1,234.50 (50%)", "  x  y ",
  "it's WE'LL don'T", "naïve café e\u0301", "日本語テスト 12", "한국어 3개", "नमस्ते",
  "👍🏽 🇩🇪",
  "½ ٣ ①", "a\u00a0b\u3000c", "def f():\n\treturn 1  # x\r\n", "...!!!", "fooBarHTTP",
  "<|im_start|>user\nhi<|im_end|>", "a<|im_end|> b", "\u2581under",
]  # fmt: skip
CORPUS = [
  *HARD,
  "the quick brown fox jumps over the lazy dog and it is happy to be there",
  "natalia sold 48 clips in april and then half as many in may, 48/2 = 24 clips",
  "  four    spaces and    more    spaces\n\n\nnewlines 1000 2024 3.14",
] * 4  # fmt: skip
# llama.cpp's name -> a pre-tokenizer as published tokenizers have it, from their parts.
PUBLISHED = {
  "smollm": [
    pre_tokenizers.Digits(individual_digits=True),
    pre_tokenizers.ByteLevel(add_prefix_space=False),
  ],
  "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
  "falcon": [
    pre_tokenizers.Punctuation("contiguous"),
    pre_tokenizers.ByteLevel(add_prefix_space=False),
    pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
  ],
}


def from_transformers(name):
  """The pre-tokenizer of a tokenizer class in transformers, or its expression."""
  from transformers.integrations.gguf import gguf_tokenizer_mapping as theirs

  regex = theirs.GGUF_PRE_TOKENIZER_SPLITS[name]
  return [
    pre_tokenizers.Split(Regex(regex), "isolated"),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
  ]


def byte_level(name, parts, normalizer=None):
  """A byte-level BPE trained on the corpus, and its metadata."""
  core = tokenizers.Tokenizer(models.BPE())
  core.pre_tokenizer = pre_tokenizers.Sequence(parts)
  core.decoder = decoders.ByteLevel()
  if normalizer:
    core.normalizer = normalizer
  trainer = trainers.BpeTrainer(
    vocab_size=600,
    special_tokens=["<|im_start|>", "<|im_end|>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  core.train_from_iterator(CORPUS, trainer)
  core.add_tokens([tokenizers.AddedToken("<think>", normalized=False)])
  model = json.loads(core.to_str())["model"]
  tokens = sorted(core.get_vocab(), key=core.get_vocab().get)
  kinds = [3 if t.startswith("<|im") else 4 if t == "<think>" else 1 for t in tokens]
  return core, {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": name,
    "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.token_type": np.array(kinds),
    "tokenizer.ggml.merges": [" ".join(m) for m in model["merges"]],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.add_bos_token": False,
  }


def sentencepiece(prefix):
  """A BPE with byte fallback as SentencePiece trains it, and its metadata."""
  core = tokenizers.Tokenizer(
    models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
  )
  first = [normalizers.Prepend("\u2581")] if prefix else []
  core.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", "\u2581")])
  special = ["<unk>", "<s>", "</s>"]
  bytes_ = [f"<0x{i:02X}>" for i in range(256)]
  trainer = trainers.BpeTrainer(
    vocab_size=700,
    special_tokens=special + bytes_,
    limit_alphabet=40,
    show_progress=False,
  )
  core.train_from_iterator([" ".join(t.split(" ")[:9]) for t in CORPUS], trainer)
  spec = json.loads(core.to_str())
  spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] in special]
  vocabulary, merges = spec["model"]["vocab"], spec["model"]["merges"]
  tokens = sorted(vocabulary, key=vocabulary.get)
  scores = {"".join(m): -float(i) for i, m in reversed(list(enumerate(merges)))}
  every = {t: scores.get(t, 0.0) for t in tokens}
  spec["model"]["merges"] = generate_merges(vocabulary, every)
  core = tokenizers.Tokenizer.from_str(json.dumps(spec))
  end = [decoders.Strip(" ", 1, 0)] if prefix else []
  core.decoder = decoders.Sequence(
    [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *end]
  )
  kinds = [
    2 if t == "<unk>" else 3 if t in special else 6 if t in bytes_ else 1
    for t in tokens
  ]
  return core, {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.token_type": np.array(kinds),
    "tokenizer.ggml.scores": np.array([scores.get(t, 0.0) for t in tokens]),
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.add_space_prefix": prefix,
  }


def rebuilt(meta):
  return ours.from_files(gguf_tokenizer.files(meta, "x.gguf"), "x.gguf")


def same(core, found):
  for text in CORPUS[: len(HARD) + 3]:
    ids = core.encode(text, add_special_tokens=False).ids
    assert found.encode(text) == ids, text
    assert found.decode(ids) == core.decode(ids), text


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_stand_for_the_published_pre_tokenizers(name):
  core, meta = byte_level(name, PUBLISHED[name])
  same(core, rebuilt(meta))
  assert gguf_pretokenizers.name_of(core.pre_tokenizer, False, False) == name


@pytest.mark.parametrize("name", ["llama-bpe", "tekken", "gpt-4o", "deepseek-r1-qwen"])
def test_names_stand_for_the_expressions_of_transformers(name):
  core, meta = byte_level(name, from_transformers(name))
  core.model.ignore_merges = gguf_pretokenizers.SPLITS[name].ignore_merges
  same(core, rebuilt(meta))


def test_qwen_normalizes_as_its_published_tokenizer_does():
  from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

  core, meta = byte_level("qwen2", from_transformers("qwen2"), normalizers.NFC())
  same(core, rebuilt(meta))
  model = json.loads(core.to_str())["model"]
  theirs = Qwen2Tokenizer(
    vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]]
  )
  for text in CORPUS[:10]:
    assert rebuilt(meta).encode(text) == theirs.encode(text), text


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_is_rebuilt_from_its_scores(prefix):
  core, meta = sentencepiece(prefix)
  found = rebuilt(meta)
  same(core, found)
  assert found.add_bos
  assert (found.bos_id, found.eos_ids) == (1, (2,))


def test_gemma_orders_merges_by_id_and_stores_spaces_as_they_look():
  core, meta = sentencepiece(False)
  tokens = meta["tokenizer.ggml.tokens"]
  meta["general.architecture"] = "gemma2"
  meta["tokenizer.ggml.scores"] = np.zeros(len(tokens))
  meta["tokenizer.ggml.tokens"] = [
    t.replace("\u2581", " ") if not t.strip("\u2581") and len(t) > 1 else t
    for t in tokens
  ]
  assert meta["tokenizer.ggml.tokens"] != tokens
  same(core, rebuilt(meta))


def test_a_file_keeps_special_tokens_template_and_ends(tmp_path):
  _, meta = byte_level("llama-bpe", from_transformers("llama-bpe"))
  meta |= {"tokenizer.ggml.add_bos_token": True, "tokenizer.chat_template": "{{ 1 }}"}
  writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
  for key, value in meta.items():
    add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
    value = value.tolist() if isinstance(value, np.ndarray) else value
    add.get(type(value), writer.add_array)(key, value)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  found = rebuilt(gguf_file.read(tmp_path / "x.gguf").meta)
  assert found.encode("hi", bos=True)[0] == 0
  assert found.encode("<|im_end|>") == [1]
  assert found.decode([0, *found.encode("hi")]) == "hi"
  assert found.decode(found.encode("<think>")) == "<think>"  # matched, but not special
  assert len(found.encode("<think>")) == 1
  assert found.special == dict(bos_token="<|im_start|>", eos_token="<|im_end|>")
  assert found.chat_template == "{{ 1 }}"


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"tokenizer.ggml.pre": "smolm"}, "Did you mean 'smollm'"),
    ({"tokenizer.ggml.model": "bert"}, "Known: gpt2, llama"),
    ({"tokenizer.ggml.merges": ["a b", "c"]}, "'c', no pair"),
    ({"tokenizer.ggml.merges": ["xx yy"]}, "damaged"),
    ({"tokenizer.ggml.merges": None}, "missing"),
    ({"tokenizer.ggml.tokens": ["a", "a"]}, "'a' twice"),
    ({"tokenizer.ggml.token_type": np.array([1])}, "token_type is not"),
    ({"tokenizer.ggml.bos_token_id": 10**6}, "is no id"),
  ],
)
def test_damaged_tokenizers_are_refused_in_one_line(change, said):
  _, meta = byte_level("gpt-2", PUBLISHED["gpt-2"])
  with pytest.raises(InputError, match=said):
    rebuilt(meta | change)
