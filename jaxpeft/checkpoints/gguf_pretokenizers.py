"""How llama.cpp splits a text into words before BPE, by `tokenizer.ggml.pre`.

A GGUF file holds only the name. The regular expressions are part of llama.cpp's source
(src/llama-vocab.cpp); where that replaced an expression of a tokenizer.json by another
form for its own engine, the original is used here. Each expression cuts what the one
before left, and what it does not match stays a piece.
"""

from typing import NamedTuple

from tokenizers import Regex, pre_tokenizers

from jaxpeft.errors import unknown

_GPT2 = (
  r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)  # fmt: skip
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # English contractions
_WORDS = _SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES
_QWEN2 = _WORDS + r"\p{N}" + _SIGNS
_LLAMA3 = _WORDS + r"\p{N}{1,3}" + _SIGNS
_QWEN35 = (
  _SHORT
  + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
  + _SPACES
)
# A word in two forms: ending in small letters, or beginning with capital ones.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SMALL = r"[^\r\n\p{L}\p{N}]?" + _UPPER + "*" + _LOWER + "+"
_CAPITAL = r"[^\r\n\p{L}\p{N}]?" + _UPPER + "+" + _LOWER + "*"
_SLASHED = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES
_TEKKEN = f"{_SMALL}|{_CAPITAL}|" + r"\p{N}" + _SLASHED
_GPT4O = f"{_SMALL}{_SHORT}?|{_CAPITAL}{_SHORT}?|" + r"\p{N}{1,3}" + _SLASHED
_ASCII_SIGNS = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_DEEPSEEK3 = (
  r"\p{N}{1,3}",
  "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
  _ASCII_SIGNS
  + r"[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
  + _SPACES,
)
_DEEPSEEK_CODER = (
  r"[\r\n]",
  r"\s?\p{L}+",
  r"\s?\p{P}+",
  "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
  r"\p{N}",
)
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")
_FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")
_DIGITS = (r"\p{N}", _GPT2)


class Split(NamedTuple):
  """How a text is split.

  Attributes:
    regexes: applied one after the other.
    ignore_merges: whether a word that is a token is taken whole, whatever the merges.
    add_bos: whether a text starts with the beginning-of-text token, unless the file
      says otherwise.
    normalizes: whether the original tokenizers bring a text to Unicode's form NFC
      first. llama.cpp does not; the model was trained on what they give.
  """

  regexes: tuple[str, ...]
  ignore_merges: bool = False
  add_bos: bool = False
  normalizes: bool = False


# The first name of each group is the one to write.
_GROUPS = (
  ("smollm starcoder refact command-r codeshell exaone minerva-7b", Split(_DIGITS)),
  (
    "gpt-2 phi-2 mpt jais trillion granite-docling exaone4 gigachat a.x-4.0 "
    "mellum modern-bert jina-es jina-de jina-v2-es jina-v2-de",
    Split((_GPT2,)),
  ),
  ("olmo", Split((_GPT2,), normalizes=True)),
  ("qwen2", Split((_QWEN2,), normalizes=True)),
  (
    "deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2",
    Split((_QWEN2,)),
  ),
  (
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
    Split((_LLAMA3,), ignore_merges=True, add_bos=True),
  ),
  ("dbrx smaug-bpe glm4 chatglm-bpe", Split((_LLAMA3,))),
  ("tekken", Split((_TEKKEN,), ignore_merges=True, add_bos=True)),
  ("gpt-4o llama4 kanana2 talkie minimax-m2", Split((_GPT4O,))),
  ("deepseek-v3 hunyuan-dense joyai-llm", Split(_DEEPSEEK3)),
  ("deepseek-coder", Split(_DEEPSEEK_CODER)),
  ("qwen35", Split((_QWEN35,), normalizes=True)),
  ("falcon", Split(_FALCON)),
  ("default", Split(_DEFAULT)),
)
SPLITS = {name: split for names, split in _GROUPS for name in names.split()}
# What the expressions treat differently: digits, letters, spaces, line ends, signs.
_PROBE = (
  " a1 b22 c333 d4444 55555 1,234.5 x+y=z 3/4 $5 50% I'm WE'LL don'T it's \n\n \r\n\t"
  " \tTwo  three   spaces.\n  next()\n}\n/// // __init__ fooBar HTTPServer ÉCOLE naïve"
  " e\u0301t 日本語テスト12 한국어 Привет नमस्ते 👍🏽 ½ ٣٤ ① “q”… `code` ~|^ <b> [x]{y}"
  "…!! a\u00a0b \u3000c 'S 'LL 100km A1B2 ǅ ﬁ end   "
)


def probes() -> list[str]:
  """Texts on which two tokenizers are compared: together, and word by word."""
  return [_PROBE, *_PROBE.split(" "), "", " ", "\n\n\n", "a" * 50]


def get(name: str, place: str) -> Split:
  """The `Split` of a name.

  Raises:
    InputError: the name is unknown; the message lists the known ones.
  """
  if name not in SPLITS:
    raise unknown(f"tokenizer.ggml.pre in {place}", name, SPLITS)
  return SPLITS[name]


def build(split: Split) -> pre_tokenizers.PreTokenizer:
  """The pre-tokenizer for byte-level BPE."""
  cuts = [pre_tokenizers.Split(Regex(regex), "isolated") for regex in split.regexes]
  to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  return pre_tokenizers.Sequence([*cuts, to_bytes])


def name_of(
  made: pre_tokenizers.PreTokenizer, ignore_merges: bool, normalizes: bool
) -> str | None:
  """The name whose splits of a probing text equal those of a pre-tokenizer.

  Args:
    made: the pre-tokenizer.
    ignore_merges, normalizes: as in `Split`; the name must agree in both.
  """
  wanted = made.pre_tokenize_str(_PROBE)
  for name, split in SPLITS.items():
    if (split.ignore_merges, split.normalizes) == (ignore_merges, normalizes):
      if build(split).pre_tokenize_str(_PROBE) == wanted:
        return name
  return None
