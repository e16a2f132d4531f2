"""Loads Hugging Face tokenizers: `tokenizer.json`, special tokens, chat template."""

import dataclasses
import functools
import json
import pathlib

import tokenizers

from jaxpeft.data import answers, special_tokens
from jaxpeft.errors import InputError

FILES = (
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "generation_config.json",
  "chat_template.jinja",
)
TEMPLATES = "additional_chat_templates"  # a folder


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Converts text to token ids and back.

  Attributes:
    core: the `tokenizers.Tokenizer`.
    files: {name: content} of the files it was loaded from, to save with a model.
    add_bos: whether texts start with the beginning-of-text token.
    bos_id: id of the beginning-of-text token, or None.
    pad_id: id of the padding token, or None.
    eos_ids: ids that end a text; generation stops at any of them, and training appends
      the first.
    chat_template: source in jinja2, or None.
    special: {name: special token} that templates may print, e.g. {"bos_token": "<s>"}.
    tool_template: the chat template for conversations with tools, if it is another one.
  """

  core: tokenizers.Tokenizer
  files: dict[str, bytes]
  add_bos: bool
  bos_id: int | None
  pad_id: int | None
  eos_ids: tuple[int, ...]
  chat_template: str | None
  special: dict[str, str]
  tool_template: str | None = None

  def encode(self, text: str, bos: bool = False) -> list[int]:
    """The token ids of a text.

    Args:
      text: any text; special tokens in it are recognized.
      bos: whether the text starts here, so that it gets a beginning-of-text token if
        the tokenizer adds one.
    """
    ids = self.encoding(text).ids
    first = [self.bos_id] if self.bos_id is not None else []
    return first + ids if bos and self.add_bos else ids

  def encode_all(self, texts: list[str], bos: bool = False) -> list[list[int]]:
    """`encode` of several texts, on all cores."""
    try:
      batch = getattr(self.core, "encode_batch_fast", self.core.encode_batch)
      found = batch(texts, add_special_tokens=False)
    except TypeError:  # which text it is, `encode` says
      return [self.encode(text, bos) for text in texts]
    first = [self.bos_id] if bos and self.add_bos and self.bos_id is not None else []
    return [first + encoding.ids for encoding in found]

  def decode(self, ids, skip_special: bool = True) -> str:
    """The text of token ids, without special tokens if `skip_special`."""
    return self.core.decode(list(map(int, ids)), skip_special_tokens=skip_special)

  def encoding(self, text: str) -> tokenizers.Encoding:
    """The tokens of a text with their places in it; nothing is added.

    Raises:
      InputError: the text has lone surrogates, which are no characters.
    """
    try:
      return self.core.encode(text, add_special_tokens=False)
    except TypeError as e:
      raise InputError(
        f"not a text: {text[:100]!r} (Unicode without lone surrogates is needed)"
      ) from e

  @functools.cached_property
  def special_ids(self) -> frozenset[int]:
    """Ids of the tokens that structure a text, and of those that end it."""
    added = self.core.get_added_tokens_decoder().items()
    return frozenset(i for i, token in added if token.special) | set(self.eos_ids)

  def template_for(self, tools) -> str:
    """The chat template for a conversation with these tools, or with None.

    Raises:
      InputError: there is none.
    """
    source = self.chat_template if tools is None else self.tool_template
    source = source or self.chat_template
    if source is None:
      raise InputError(
        "the tokenizer has no chat template (chat_template in tokenizer_config.json); "
        "give the data as prompt/completion, or add the template file"
      )
    return source

  def chat(self, messages, generation_prompt: bool = False, tools=None):
    """(ids, supervised) of a conversation, see `answers.chat`.

    Raises:
      InputError: there is no chat template, or it fails.
    """
    return answers.chat(self, messages, generation_prompt, tools)


def load(directory, eos_ids: tuple[int, ...] = ()) -> Tokenizer:
  """The `Tokenizer` of a model directory: `from_files` of what `read_files` finds."""
  return from_files(read_files(directory), str(directory), eos_ids)


def read_files(directory) -> dict[str, bytes]:
  """{name: content} of the tokenizer files that a model directory has.

  These are `FILES`, and TEMPLATES/NAME.jinja.

  Raises:
    InputError: a file cannot be read.
  """
  directory = pathlib.Path(directory)
  paths = [p for p in (directory / name for name in FILES) if p.is_file()]
  paths += sorted((directory / TEMPLATES).glob("*.jinja"))
  try:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in paths}
  except OSError as e:
    raise InputError(f"cannot read the tokenizer in {directory}: {e}") from e


def from_files(
  files: dict[str, bytes], place: str, eos_ids: tuple[int, ...] = ()
) -> Tokenizer:
  """The `Tokenizer` that the content of tokenizer files describes.

  Truncation and padding that were saved with it are not used.

  Args:
    files: {name: content}, with tokenizer.json; the others are optional.
    place: where the files are from, for error messages.
    eos_ids: further ids that end a text, from the model's config.
  Raises:
    InputError: tokenizer.json is missing, or a file is damaged.
  """
  if "tokenizer.json" not in files:
    raise InputError(f"no tokenizer.json in {place}; other formats are not read")
  config, names, generation = (
    _object(files, f"{name}.json", place)
    for name in ("tokenizer_config", "special_tokens_map", "generation_config")
  )
  templates = _templates(files, config, place)
  core = _core(files["tokenizer.json"], place)
  special = special_tokens.add(core, config, names, place)
  ids = {k: core.token_to_id(v) for k, v in special.items()}
  ends = (ids.get("eos_token"), *eos_ids, *_eos_ids(generation, place))
  bos_id = ids.get("bos_token")
  return Tokenizer(
    core=core,
    files=_flat(files, config, templates),
    add_bos=bos_id is not None and core.encode("a").ids[:1] == [bos_id],
    bos_id=bos_id,
    pad_id=ids.get("pad_token"),
    eos_ids=tuple(dict.fromkeys(i for i in ends if i is not None)),
    chat_template=templates.get("default"),
    special=special,
    tool_template=templates.get("tool_use"),
  )


def _core(data: bytes, place: str) -> tokenizers.Tokenizer:
  try:
    core = tokenizers.Tokenizer.from_str(data.decode())
    core.no_truncation()
    core.no_padding()
    core.encode("a")  # some damage shows only now
    return core
  # The Rust library's panics are no Exceptions.
  except BaseException as e:
    if isinstance(e, KeyboardInterrupt | SystemExit):
      raise
    raise InputError(f"cannot read {place}/tokenizer.json: {str(e)[:300]}") from e


def _object(files, name: str, place: str) -> dict:
  """The JSON object in a file; empty if there is no such file."""
  try:
    value = json.loads(files.get(name, b"{}"))
  except (ValueError, RecursionError) as e:
    raise InputError(f"cannot read {place}/{name}: {e}") from e
  if not isinstance(value, dict):
    kind = type(value).__name__
    raise InputError(f"{place}/{name} holds a {kind}; it must be a JSON object")
  return value


def _eos_ids(generation: dict, place: str) -> list[int]:
  """`eos_token_id` of generation_config.json, which may be a list; 0 is a valid id."""
  value = generation.get("eos_token_id")
  ids = value if isinstance(value, list) else [] if value is None else [value]
  if not all(type(i) is int and i >= 0 for i in ids):
    raise InputError(
      f"{place}/generation_config.json: eos_token_id is {str(value)[:100]}; it must be "
      "an id or a list of ids"
    )
  return ids


def _templates(files, config: dict, place: str) -> dict[str, str]:
  """{name: chat template}; files count before tokenizer_config.json.

  The one without a name is "default"; conversations with tools prefer "tool_use". This
  is as in transformers.
  """
  found = {
    pathlib.PurePosixPath(name).stem.replace("chat_template", "default"): name
    for name in sorted(files, key=lambda name: name != "chat_template.jinja")
    if name.endswith(".jinja")
  }
  try:
    if found:
      return {key: files[name].decode() for key, name in found.items()}
  except UnicodeDecodeError as e:
    raise InputError(f"{place}: a chat template is not UTF-8: {e}") from e
  value = config.get("chat_template")
  named = {"default": value} if isinstance(value, str) else value or {}
  if isinstance(named, list) and all(isinstance(x, dict) for x in named):
    named = {x.get("name"): x.get("template") for x in named}
  if not isinstance(named, dict) or not all(
    isinstance(x, str) for pair in named.items() for x in pair
  ):
    raise InputError(
      f"{place}/tokenizer_config.json: chat_template is {str(value)[:100]}; it must be "
      'a text or a list of {"name": ..., "template": ...}'
    )
  return {str(k): str(v) for k, v in named.items()}


def _flat(files, config: dict, templates: dict[str, str]) -> dict[str, bytes]:
  """The files without a folder: several templates move to tokenizer_config.json."""
  if not any(name.startswith(TEMPLATES) for name in files):
    return files
  listed = [{"name": k, "template": v} for k, v in templates.items()]
  text = json.dumps(config | {"chat_template": listed}, indent=2, ensure_ascii=False)
  rest = {k: v for k, v in files.items() if not k.endswith(".jinja")}
  return rest | {"tokenizer_config.json": text.encode()}
