"""Turns a tokenizer into the metadata of a GGUF file, and checks that it survives.

llama.cpp knows fixed kinds of tokenizers, not their parts. So the nearest kind is
written, rebuilt as a reader would, and compared on a probing text.
"""

import json
from typing import Any

import numpy as np
import tokenizers

from jaxpeft.checkpoints import gguf_pretokenizers, gguf_tokenizer
from jaxpeft.checkpoints.gguf_tokenizer import BYTE, CONTROL, SPACE, USER_DEFINED
from jaxpeft.errors import InputError
from jaxpeft.transformer.config import ModelConfig

_NORMAL, _UNKNOWN, _UNUSED = 1, 2, 5
_EOS_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def metadata(tokenizer, config: ModelConfig, arch: str) -> dict[str, Any]:
  """The keys tokenizer.* of a GGUF file.

  Args:
    tokenizer: a `Tokenizer`.
    config: of the model: the number of tokens, and further ids that end a text.
    arch: name of the file's architecture.
  Raises:
    InputError: the tokenizer is of no kind that llama.cpp knows.
  """
  core: tokenizers.Tokenizer = tokenizer.core
  spec = json.loads(core.to_str())
  model = spec["model"]
  if model.get("type") != "BPE":
    raise InputError(
      f"a GGUF file cannot hold a tokenizer of type {model.get('type')!r}, only BPE"
    )
  tokens, kinds = _tokens(core, model, config.vocab_size)
  meta: dict[str, Any] = {"tokenizer.ggml.model": "gpt2"}
  if model.get("byte_fallback"):
    meta["tokenizer.ggml.model"] = "llama"
    meta["tokenizer.ggml.pre"] = "default"
    meta["tokenizer.ggml.scores"] = _scores(model, tokens)
    first = core.encode("a", add_special_tokens=False).tokens[:1]
    meta["tokenizer.ggml.add_space_prefix"] = bool(first and first[0][0] == SPACE)
    tokens = [
      t.replace(SPACE, " ") if kind == USER_DEFINED else t
      for t, kind in zip(tokens, kinds, strict=True)
    ]
  else:
    meta["tokenizer.ggml.pre"] = _pre(core, model)
    meta["tokenizer.ggml.merges"] = [" ".join(_pair(m)) for m in model["merges"]]
  meta["tokenizer.ggml.tokens"] = tokens
  meta["tokenizer.ggml.token_type"] = kinds
  ends = dict.fromkeys((*tokenizer.eos_ids, *config.eos_ids))
  ids: dict[str, int | None] = dict(zip(_EOS_KEYS, ends, strict=False))
  ids["bos_token_id"] = tokenizer.bos_id
  ids["padding_token_id"] = tokenizer.pad_id
  ids["unknown_token_id"] = core.token_to_id(tokenizer.special.get("unk_token", ""))
  meta |= {f"tokenizer.ggml.{k}": i for k, i in ids.items() if i is not None}
  meta["tokenizer.ggml.add_bos_token"] = tokenizer.add_bos
  meta["tokenizer.ggml.add_eos_token"] = core.encode("a").ids[-1] in tokenizer.eos_ids
  if tokenizer.chat_template:
    meta["tokenizer.chat_template"] = tokenizer.chat_template
  _check(core, meta, arch)
  return meta


def _tokens(core, model: dict, size: int) -> tuple[list[str], list[int]]:
  """(tokens, kinds) of all ids; ids without a token are padded, as llama.cpp does."""
  by_id = {i: token for token, i in core.get_vocab(with_added_tokens=True).items()}
  if max(by_id) >= size:
    raise InputError(
      f"a GGUF file cannot hold a tokenizer with the id {max(by_id)} for a model of "
      f"{size} tokens"
    )
  added = core.get_added_tokens_decoder()
  tokens, kinds = [], []
  for i in range(size):
    token = by_id.get(i)
    tokens.append(f"[PAD{i}]" if token is None else token)
    kind = _UNUSED if token is None else _NORMAL
    if model.get("byte_fallback") and token and _is_byte(token):
      kind = BYTE
    if i in added:
      kind = CONTROL if added[i].special else USER_DEFINED
    if token is not None and token == model.get("unk_token"):
      kind = _UNKNOWN
    kinds.append(kind)
  return tokens, kinds


def _is_byte(token: str) -> bool:
  return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _pair(merge) -> list[str]:
  """A merge as two tokens; tokenizer.json has two forms of it."""
  return merge.split(" ") if isinstance(merge, str) else list(merge)


def _scores(model: dict, tokens: list[str]) -> list[float]:
  """A score for each token: the earlier a merge makes it, the higher."""
  rank: dict[str, int] = {}
  for i, merge in enumerate(model["merges"]):
    rank.setdefault("".join(_pair(merge)), i)
  return [-float(rank.get(token, 0)) for token in tokens]


def _pre(core, model: dict) -> str:
  """llama.cpp's name of the pre-tokenizer."""
  normalizer = core.normalizer
  normalizes = normalizer is not None and normalizer.normalize_str("e\u0301") == "\xe9"
  ignores = bool(model.get("ignore_merges"))
  name = core.pre_tokenizer and gguf_pretokenizers.name_of(
    core.pre_tokenizer, ignores, normalizes
  )
  if not name:
    raise InputError(
      "a GGUF file cannot hold this tokenizer: llama.cpp has no name for its "
      "pre-tokenizer, or not together with its normalizer and ignore_merges = "
      f"{ignores}; export with --format=hf"
    )
  return name


def _check(core, meta: dict, arch: str):
  """Refuses a tokenizer whose ids a reader of the metadata would not get back."""
  arrays = {
    key: np.array(meta[f"tokenizer.ggml.{key}"])
    for key in ("token_type", "scores")
    if f"tokenizer.ggml.{key}" in meta
  }
  read = meta | {f"tokenizer.ggml.{key}": x for key, x in arrays.items()}
  read["general.architecture"] = arch
  files = gguf_tokenizer.files(read, "the written tokenizer")
  back = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
  for text in gguf_pretokenizers.probes():
    ours, theirs = core.encode(text).ids, back.encode(text).ids
    if ours != theirs:
      raise InputError(
        "a GGUF file cannot hold this tokenizer: it would give other ids for "
        f"{text[:40]!r}; export with --format=hf"
      )
