"""Loads Hugging Face tokenizers: `tokenizer.json`, special tokens, chat template."""

import dataclasses
import json
import pathlib

import tokenizers

from jaxpeft.data import template
from jaxpeft.errors import InputError

FILES = (
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "generation_config.json",
  "chat_template.jinja",
)


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
  """

  core: tokenizers.Tokenizer
  files: dict[str, bytes]
  add_bos: bool
  bos_id: int | None
  pad_id: int | None
  eos_ids: tuple[int, ...]
  chat_template: str | None
  special: dict[str, str]

  def encode(self, text: str, bos: bool = False) -> list[int]:
    """The token ids of a text.

    Args:
      text: any text; special tokens in it are recognized.
      bos: whether the text starts here, so that it gets a beginning-of-text token if
        the tokenizer adds one.
    """
    ids = self.core.encode(text, add_special_tokens=False).ids
    first = [self.bos_id] if self.bos_id is not None else []
    return first + ids if bos and self.add_bos else ids

  def decode(self, ids, skip_special: bool = True) -> str:
    """The text of token ids, without special tokens if `skip_special`."""
    return self.core.decode(list(map(int, ids)), skip_special_tokens=skip_special)

  def chat(self, messages, generation_prompt: bool = False):
    """(ids, supervised) of a conversation, see `template.chat`.

    Raises:
      InputError: there is no chat template, or it fails.
    """
    if self.chat_template is None:
      raise InputError(
        "the tokenizer has no chat template (chat_template in tokenizer_config.json); "
        "give the data as prompt/completion, or add the template file"
      )
    return template.chat(self, messages, generation_prompt)


def load(directory, eos_ids: tuple[int, ...] = ()) -> Tokenizer:
  """The `Tokenizer` of a model directory.

  Args:
    directory: with tokenizer.json; the other `FILES` are optional.
    eos_ids: further ids that end a text, from the model's config.
  Raises:
    InputError: tokenizer.json is missing, or a file is damaged.
  """
  directory = pathlib.Path(directory)
  files = {n: (directory / n).read_bytes() for n in FILES if (directory / n).is_file()}
  if "tokenizer.json" not in files:
    raise InputError(f"no tokenizer.json in {directory}; other formats are not read")
  try:
    core = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    config, names, generation = (
      json.loads(files.get(f"{name}.json", b"{}"))
      for name in ("tokenizer_config", "special_tokens_map", "generation_config")
    )
  except Exception as e:
    raise InputError(f"cannot read the tokenizer in {directory}: {e}") from e
  names = names | config
  special = {
    k: v["content"] if isinstance(v, dict) else v
    for k, v in names.items()
    if k.endswith("_token") and isinstance(v, str | dict)
  }
  ids = {k: core.token_to_id(v) for k, v in special.items()}
  more = generation.get("eos_token_id")
  more = (more,) if isinstance(more, int) else tuple(more or ())  # 0 is a valid id
  ends = [i for i in (ids.get("eos_token"), *eos_ids, *more) if i is not None]
  source = files.get("chat_template.jinja")
  source = source.decode() if source else config.get("chat_template")
  if isinstance(source, list):  # several named templates
    source = next((t["template"] for t in source if t["name"] == "default"), None)
  return Tokenizer(
    core=core,
    files=files,
    add_bos=_adds_bos(core, ids.get("bos_token")),
    bos_id=ids.get("bos_token"),
    pad_id=ids.get("pad_token"),
    eos_ids=tuple(dict.fromkeys(ends)),
    chat_template=source,
    special=special,
  )


def _adds_bos(core, bos_id) -> bool:
  """Whether the tokenizer's post-processor puts `bos_id` before a text."""
  return bos_id is not None and core.encode("a").ids[:1] == [bos_id]
