"""Contents of messages as lists of parts, for templates that expect texts.

Some chat templates print the texts of a list's parts. Others would print the list
itself, as Python shows it.
"""

import functools

from jaxpeft.data import template
from jaxpeft.errors import InputError

_TEXT, _OTHER = "qzvtext", "qzvother"


def for_template(messages: list[dict], source: str, special: dict) -> list[dict]:
  """Messages whose lists of texts are joined, unless the template prints such lists.

  Args:
    messages: in the form of {"role", "content", ...}.
    source: the chat template.
    special: see `template.render`.
  """
  if not any(isinstance(m.get("content"), list) for m in messages):
    return messages
  if _prints_lists(source, tuple(sorted(special.items()))):
    return messages
  return [_joined(m) for m in messages]


def _joined(message: dict) -> dict:
  parts = message.get("content")
  if not isinstance(parts, list):
    return message
  texts = [p if isinstance(p, str) else _text(p) for p in parts]
  known = [text for text in texts if text is not None]
  if len(known) < len(parts):
    return message  # an image, for example: the template decides
  return message | {"content": "".join(known)}


def _text(part: dict) -> str | None:
  text = part.get("text")
  return text if part.get("type", "text") == "text" and isinstance(text, str) else None


@functools.lru_cache(maxsize=64)
def _prints_lists(source: str, special: tuple) -> bool:
  """Whether a template prints the text of a list's part, and not the list."""
  part = {"type": "text", "text": _TEXT, "other": _OTHER}
  try:
    text = _rendered([part], source, special)
  except InputError:  # perhaps it computes with texts only
    try:
      return _TEXT not in _rendered(_TEXT, source, special)
    except InputError:
      return True  # it refuses this conversation, whatever its contents are
  return _TEXT in text and _OTHER not in text


def _rendered(content, source: str, special: tuple) -> str:
  messages = template.normalized([{"role": "user", "content": content}])
  return template.render(source, messages, False, dict(special))
