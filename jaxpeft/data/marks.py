"""Puts private-use characters into messages, to find their texts in a rendered chat.

Templates trim texts, cut <think>...</think> out of them and print them in other orders.
Marks survive this: they stand directly before the first and after the last visible
character of a text, where trimming leaves them, and outside of tags, so that a template
still finds the tags that it looks for.
"""

import re

_TAG = re.compile(r"(</?[^<>\s][^<>\n]{0,60}>|\[/?[A-Z_]+\])")
_TEXTS = ("content", "reasoning_content", "thinking", "reasoning", "tool_plan")


def is_empty(message: dict) -> bool:
  """Whether a message says nothing: no visible text and no tool calls."""
  return not message.get("tool_calls") and not any(
    str(message.get(k) or "").strip() for k in _TEXTS
  )


def put(message: dict, mark: str, tags: bool, calls: str) -> dict:
  """A message whose texts have `mark` at their ends.

  Args:
    message: see `template.normalized`.
    mark: one character.
    tags: whether the marks leave tags in texts alone.
    calls: what is marked of tool calls besides the message's texts: texts in their
      "arguments"; their "keys", too; or nothing (""). "name" marks the functions' names
      and nothing else of the message, since results of tools may repeat names.
  """
  names = calls == "name" and bool(message.get("tool_calls"))

  def edges(text: str) -> str:
    stripped = text.strip()
    if not stripped:
      return text
    start = text.index(stripped)
    end = start + len(stripped)
    return f"{text[:start]}{mark}{stripped}{mark}{text[end:]}"

  def around(text: str) -> str:
    parts = _TAG.split(text) if tags else [text]
    parts[::2] = map(edges, parts[::2])  # the others are tags
    marked = "".join(parts)
    return marked if mark in marked else edges(text)

  def deep(value):
    if isinstance(value, str):
      return around(value)
    if isinstance(value, list):
      return [deep(x) for x in value]
    if isinstance(value, dict):
      return {around(k) if calls == "keys" else k: deep(v) for k, v in value.items()}
    return value

  def content(value):
    if isinstance(value, list):
      return [content(x) for x in value]
    if isinstance(value, dict):
      return {k: deep(v) if k in ("text", "output") else v for k, v in value.items()}
    return deep(value)

  def call(value):
    if not isinstance(value, dict):
      return value
    key = "arguments" if calls == "keys" else calls
    inner = {key: deep(value[key])} if key in value else {}
    return value | inner | {k: call(v) for k, v in value.items() if k == "function"}

  out = dict(message)
  out |= {k: content(out[k]) for k in _TEXTS if k in out and not names}
  if calls and isinstance(out.get("tool_calls"), list):
    out["tool_calls"] = [call(x) for x in out["tool_calls"]]
  return out


def take(text: str, marks: list[str]) -> tuple[str, list[tuple[int, int]]]:
  """A text without its marks, and [(position in that text, number of the mark)].

  Args:
    text: a rendered conversation.
    marks: consecutive characters, from `template.private_characters`.
  """
  if not marks:
    return text, []
  pattern = re.compile(f"[{marks[0]}-{marks[-1]}]")
  found = [
    (m.start() - i, ord(m.group()) - ord(marks[0]))
    for i, m in enumerate(pattern.finditer(text))
  ]
  return pattern.sub("", text), found
