"""Turns of a conversation, within the positions that the model has."""

import json
import pathlib
from collections.abc import Iterator

from jaxpeft import console
from jaxpeft.chat import forms
from jaxpeft.chat.voices import Voices
from jaxpeft.errors import InputError
from jaxpeft.generation import stream


class Conversation:
  """What was said so far, and how the next answer is made.

  Attributes:
    voices: the model.
    form: a key of `forms.FORMS`.
    messages: of all turns, without the system prompt.
    system: the system prompt; "" is none.
  """

  def __init__(
    self, voices: Voices, form: str, system: str, max_new_tokens: int, seed: int
  ):
    self.voices, self.form, self.messages, self.system = voices, form, [], ""
    self._new, self._seed, self._turns = max_new_tokens, seed, 0
    if max_new_tokens < 1:
      raise InputError(f"--max_new_tokens={max_new_tokens} is below 1")
    if system:
      self.set_system(system)

  def set_system(self, text: str):
    """Changes the system prompt.

    Raises:
      InputError: the prompt's form has none.
    """
    if text and self.form != "chat":
      raise InputError(f"a system prompt needs the form chat, not {self.form}")
    self.system = text

  def answer(self, line: str) -> Iterator[str]:
    """Yields the answer to a line, piece by piece.

    What has been yielded counts as the answer, also if no more of it is taken.

    Raises:
      InputError: the line is too long for the model, or the chat template refuses it.
    """
    tokenizer, session = self.voices.model.tokenizer, self.voices.session
    before = list(self.messages)
    self.messages.append(dict(role="user", content=line))
    try:
      ids = self._prompt()
    except InputError:
      self.messages = before
      raise
    limit = self.voices.model.config.max_positions
    new = min(self._new, limit - len(ids))
    said = dict(role="assistant", content="")
    self.messages.append(said)
    chunks = session.tokens(ids, new, self._seed + self._turns)
    self._turns += 1
    for piece in stream.text(tokenizer, chunks):
      said["content"] += piece
      yield piece

  def reset(self):
    """Forgets all turns; the system prompt stays."""
    self.messages, self._turns = [], 0

  def save(self, path: pathlib.Path):
    """Writes the conversation as one line of JSONL that one can train on.

    Raises:
      InputError: nothing was said, the file exists, or it cannot be written.
    """
    if not self.messages:
      raise InputError("nothing was said yet, so there is nothing to save")
    row = json.dumps(dict(messages=self._all()), ensure_ascii=False)
    try:
      with path.open("x", encoding="utf-8") as file:
        file.write(row + "\n")
    except FileExistsError as e:
      raise InputError(f"{path} exists; name another file") from e
    except (OSError, ValueError) as e:
      raise InputError(f"cannot write {path}: {e}") from e

  def _all(self) -> list[dict]:
    first = [dict(role="system", content=self.system)] if self.system else []
    return first + self.messages

  def _prompt(self) -> list[int]:
    """The prompt's tokens, after dropping the oldest turns that have no room."""
    limit = self.voices.model.config.max_positions
    room = limit - min(self._new, limit // 2)
    dropped = 0
    while True:
      ids = forms.tokens(self.form, self.voices.model.tokenizer, self._all())
      later = [i for i, m in enumerate(self.messages) if m["role"] == "user"][1:]
      if len(ids) <= room or self.form != "chat" or not later:
        break
      self.messages = self.messages[later[0] :]
      dropped += 1
    if len(ids) >= limit:
      raise InputError(
        f"the prompt has {len(ids)} tokens, the model {limit} positions; say it in "
        "fewer words, or shorten the system prompt"
      )
    if dropped:
      console.note(f"note: the oldest {dropped} turns do not fit {limit} positions")
    return ids
