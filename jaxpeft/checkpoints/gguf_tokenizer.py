"""Rebuilds a tokenizer's files from the metadata of a GGUF file.

llama.cpp knows two kinds that models here use: "gpt2" is byte-level BPE with merges,
"llama" is SentencePiece's BPE with a score for each token and no merges.
Source: llama.cpp's src/llama-vocab.cpp; Hugging Face's tokenizers has the parts.
"""

import collections
import json
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

from jaxpeft.checkpoints import gguf_file, gguf_pretokenizers
from jaxpeft.errors import InputError, unknown

UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6  # values of token_type
_LONGEST = 1024  # characters of a token or merge; longer ones would take very long
SPACE = "\u2581"  # how SentencePiece writes a space
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def files(meta: dict[str, Any], place: str) -> dict[str, bytes]:
  """{name: content} of the files that Hugging Face would have for the tokenizer.

  Args:
    meta: of a GGUF file.
    place: its path, for error messages.
  Raises:
    InputError: metadata are missing, damaged, or describe an unsupported tokenizer.
  """
  kind = gguf_file.value(meta, "tokenizer.ggml.model", str, place)
  if kind not in ("gpt2", "llama"):
    raise unknown(f"tokenizer.ggml.model in {place}", kind, ("gpt2", "llama"))
  tokens = _list(meta, "tokens", place)
  if len(set(tokens)) != len(tokens):
    twice, _ = collections.Counter(tokens).most_common(1)[0]
    raise InputError(f"{place}: tokenizer.ggml.tokens holds {twice!r} twice")
  ids = {
    name: _id(meta, f"tokenizer.ggml.{key}_token_id", len(tokens), place)
    for name, key in _SPECIAL.items()
  }
  try:
    core = (_byte_level if kind == "gpt2" else _sentencepiece)(meta, tokens, place)
  except InputError:
    raise
  except Exception as e:  # the library raises nothing more specific
    raise InputError(f"{place}: tokenizer.ggml.* is damaged: {e}") from e
  _add_tokens(core, meta, tokens, place)
  default = kind == "llama" or _split(meta, place).add_bos
  ends = {
    name: ids[name] is not None and _flag(meta, f"add_{name}_token", on, place)
    for name, on in (("bos", default), ("eos", False))
  }
  _wrap(core, tokens, ids, ends)
  config = {f"{name}_token": tokens[i] for name, i in ids.items() if i is not None}
  config |= dict(
    add_bos_token=bool(ends["bos"]),
    add_eos_token=bool(ends["eos"]),
    tokenizer_class="PreTrainedTokenizerFast",
    clean_up_tokenization_spaces=False,
  )
  found = {
    "tokenizer.json": core.to_str().encode(),
    "tokenizer_config.json": json.dumps(config, indent=2).encode(),
  }
  template = gguf_file.value(meta, "tokenizer.chat_template", str, place)
  if template is not None:
    found["chat_template.jinja"] = template.encode()
  return found


def _split(meta: dict, place: str) -> gguf_pretokenizers.Split:
  name = gguf_file.value(meta, "tokenizer.ggml.pre", str, place, "default")
  return gguf_pretokenizers.get(name, place)


def _flag(meta: dict, name: str, default: bool, place: str) -> bool:
  key = f"tokenizer.ggml.{name}"
  return bool(gguf_file.value(meta, key, (bool, int), place, default))


def _list(meta: dict, name: str, place: str) -> list[str]:
  found = meta.get(f"tokenizer.ggml.{name}")
  if not isinstance(found, list):
    raise InputError(f"{place}: tokenizer.ggml.{name} is missing or no list of texts")
  long = next((text for text in found if len(text) > _LONGEST), None)
  if long is not None:
    raise InputError(
      f"{place}: tokenizer.ggml.{name} holds a text of {len(long)} characters; at most "
      f"{_LONGEST} are read"
    )
  return found


def _numbers(meta: dict, name: str, count: int, place: str) -> list:
  """A list with one number for each token."""
  found = meta.get(f"tokenizer.ggml.{name}")
  if not isinstance(found, np.ndarray) or found.shape != (count,):
    raise InputError(f"{place}: tokenizer.ggml.{name} is not {count} numbers")
  return found.tolist()


def _id(meta: dict, key: str, count: int, place: str) -> int | None:
  found = gguf_file.value(meta, key, int, place)
  if found is not None and not 0 <= found < count:
    raise InputError(f"{place}: {key} = {found!r} is no id of the {count} tokens")
  return found


def _byte_level(meta: dict, tokens: list[str], place: str) -> tokenizers.Tokenizer:
  pairs = _pairs(meta, place)
  split = _split(meta, place)
  vocabulary = {token: i for i, token in enumerate(tokens)}
  core = tokenizers.Tokenizer(
    models.BPE(vocabulary, pairs, ignore_merges=split.ignore_merges)
  )
  core.pre_tokenizer = gguf_pretokenizers.build(split)
  if split.normalizes:
    core.normalizer = normalizers.NFC()
  core.decoder = decoders.ByteLevel()
  return core


def _pairs(meta: dict, place: str) -> list[tuple[str, str]]:
  """The merges that the file lists."""
  pairs = []
  for merge in _list(meta, "merges", place):
    left, found, right = merge[1:].partition(" ")  # a token may begin with a space
    if not found:
      raise InputError(f"{place}: tokenizer.ggml.merges holds {merge!r}, no pair")
    pairs.append((merge[:1] + left, right))
  return pairs


def _sentencepiece(meta: dict, tokens: list[str], place: str) -> tokenizers.Tokenizer:
  scores = _numbers(meta, "scores", len(tokens), place)
  kinds = _numbers(meta, "token_type", len(tokens), place)
  if str(meta.get("general.architecture")).startswith("gemma"):
    # Gemma's runs of spaces are stored as they look, and its scores are not the order
    # of its merges; the order of the tokens is.
    tokens = [SPACE * len(t) if t and not t.strip(" ") else t for t in tokens]
    scores = [-float(i) for i in range(len(tokens))]
  if isinstance(meta.get("tokenizer.ggml.merges"), list):
    pairs = _pairs(meta, place)
  else:
    pairs = merges(tokens, scores, kinds)
  vocabulary = {token: i for i, token in enumerate(tokens)}
  unknown_token = next(
    (t for t, k in zip(tokens, kinds, strict=True) if k == UNKNOWN), None
  )
  core = tokenizers.Tokenizer(
    models.BPE(
      vocabulary, pairs, unk_token=unknown_token, fuse_unk=True, byte_fallback=True
    )
  )
  prefix = _flag(meta, "add_space_prefix", True, place)
  first = [normalizers.Prepend(SPACE)] if prefix else []
  core.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", SPACE)])
  core.decoder = decoders.Sequence(
    [
      decoders.Replace(SPACE, " "),
      decoders.ByteFallback(),
      decoders.Fuse(),
      *([decoders.Strip(" ", 1, 0)] if prefix else []),
    ]
  )
  return core


def merges(
  tokens: list[str], scores: list[float], kinds: list[int]
) -> list[tuple[str, str]]:
  """The merges of BPE that SentencePiece's scores imply, the first to apply first.

  SentencePiece joins the two neighbors whose joint token has the highest score; every
  way to cut a token in two tokens is therefore a merge of its score. Of the cuts of one
  token, that with the longest left part comes first, as in published tokenizers.
  """
  known = set(tokens)
  whole = {token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL}
  found = []
  for token, score in zip(tokens, scores, strict=True):
    if token in whole:
      continue
    for cut in range(1, len(token)):
      left, right = token[:cut], token[cut:]
      if left in known and right in known and not {left, right} & whole:
        found.append((-score, -cut, left, right))
  return [(left, right) for *_, left, right in sorted(found, key=lambda m: m[:2])]


def _add_tokens(core: tokenizers.Tokenizer, meta: dict, tokens: list[str], place: str):
  """Registers tokens that are matched in the text before everything else."""
  if "tokenizer.ggml.token_type" not in meta:
    return
  kinds = _numbers(meta, "token_type", len(tokens), place)
  present = core.get_vocab(with_added_tokens=False)
  for kind, special in ((CONTROL, True), (UNKNOWN, True), (USER_DEFINED, False)):
    found = [t for t, k in zip(tokens, kinds, strict=True) if k == kind]
    added = [
      AddedToken(t, normalized=False, special=special) for t in found if t in present
    ]
    (core.add_special_tokens if special else core.add_tokens)(added)


def _wrap(core: tokenizers.Tokenizer, tokens: list[str], ids: dict, ends: dict):
  """Sets what is put before and after a text."""
  used = [name for name in ("bos", "eos") if ends[name]]
  if not used:
    return
  words = {name: tokens[ids[name]] for name in used}
  one = [words.get("bos"), "$A", words.get("eos")]
  core.post_processor = processors.TemplateProcessing(
    single=" ".join(x for x in one if x),
    special_tokens=[(words[name], ids[name]) for name in used],
  )
