"""The special tokens of a tokenizer, as transformers resolves them from its files.

Source: transformers 5.24, `PreTrainedTokenizerBase._from_pretrained` and
`TokenizersBackend.__init__`.
"""

import tokenizers

from jaxpeft.errors import InputError

# These must be tokens. Any other key that ends with _token may be one.
_NAMES = tuple(f"{x}_token" for x in "bos eos unk sep pad cls mask".split())
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_EXTRA = ("extra_special_tokens", "additional_special_tokens")


def add(core: tokenizers.Tokenizer, config: dict, names: dict, place: str):
  """{name: special token}; adds those to `core` that it does not have.

  Args:
    core: the tokenizer of tokenizer.json, which is changed.
    config: tokenizer_config.json. Its `added_tokens_decoder` may hold tokens that
      tokenizer.json lacks.
    names: special_tokens_map.json; it counts only without `added_tokens_decoder`.
    place: where the files are from, for error messages.
  Raises:
    InputError: a special token is neither a text nor an object with `content`.
  """
  decoder = config.get("added_tokens_decoder")
  if not isinstance(decoder, dict | None):
    raise _invalid("added_tokens_decoder", decoder, place)
  merged = config if decoder is not None else config | names
  named = {}
  # The order decides the ids of new tokens.
  for key in dict.fromkeys((*_NAMES, *merged)):
    value = merged.get(key)
    sure = key in _NAMES and value is not None
    if sure or (key.endswith("_token") and isinstance(value, str | dict)):
      named[key] = _token(key, value, place)
  extra = next((merged[k] for k in _EXTRA if merged.get(k)), [])
  if isinstance(extra, dict):
    named |= {k: _token(k, v, place) for k, v in extra.items()}
    extra = []
  if not isinstance(extra, list):
    raise _invalid(_EXTRA[0], extra, place)
  extra = [_token(_EXTRA[0], x, place) for x in extra]
  texts = {k: token.content for k, token in named.items()}
  _extend(core, _decoded(decoder or {}, place), [*named.values(), *extra], texts)
  return texts


def _extend(core, listed, special, texts: dict[str, str]):
  """Adds `listed` tokens unless equal ones are there, and missing `special` ones."""
  there = core.get_added_tokens_decoder().values()
  same = {repr(token) for token in there}
  new = [token for token in listed if repr(token) not in same]
  have = {token.content for token in (*there, *new)}
  for token in special:
    if token.content not in have:
      new.append(token)
      have.add(token.content)
  for token in new:
    token.special = token.special or token.content in texts.values()
  core.add_tokens(new)


def _decoded(decoder: dict, place: str) -> list[tokenizers.AddedToken]:
  """The tokens of `added_tokens_decoder`, by their ids."""
  bad = [
    key
    for key, value in decoder.items()
    if not (key.isdecimal() and len(key) < 10 and isinstance(value, dict))
  ]
  if bad:
    key = f"added_tokens_decoder.{bad[0][:20]}"
    raise _invalid(key, decoder[bad[0]], place)
  ids = sorted(decoder, key=int)
  return [_token(f"added_tokens_decoder.{i}", decoder[i], place, False) for i in ids]


def _token(key: str, value, place: str, special=True) -> tokenizers.AddedToken:
  """The token that a config names by its text, or describes with its flags."""
  value = {"content": value} if isinstance(value, str) else value
  content = value.get("content") if isinstance(value, dict) else None
  if not isinstance(content, str):
    raise _invalid(key, value, place)
  flags = {"special": special} | {k: value[k] for k in _FLAGS if k in value}
  try:
    content.encode()
    return tokenizers.AddedToken(content, **flags)
  except (TypeError, ValueError) as e:
    raise _invalid(key, value, place) from e


def _invalid(key: str, value, place: str) -> InputError:
  return InputError(
    f"{place}: {key} is {str(value)[:200]!r}; a special token is a text, or an object "
    "with its text as `content`"
  )
