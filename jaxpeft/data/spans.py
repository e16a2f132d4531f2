"""Finds each answer of a conversation in its rendered text, by marks in the messages.

Each message's text is marked with private-use characters (see `marks`). Without the
marks the text must equal the plain rendering, which proves that they changed nothing
else. An answer begins where generation would begin: after the header that the template
writes as generation prompt. It ends with its end token: what the template writes after
the answer whether or not the conversation goes on.
"""

import dataclasses
import functools
import json
from typing import Any

from jaxpeft.data import marks, template
from jaxpeft.errors import InputError

# (tags, calls) of `marks.put`, tried in this order.
_PLACEMENTS = tuple(
  (tags, calls) for calls in ("arguments", "keys", "name", "") for tags in (True, False)
)
_UNSTABLE = (
  "it depends on the messages' exact characters; perhaps the template prints a list as "
  "Python code: give each content as one text"
)


@dataclasses.dataclass(frozen=True)
class Chat:
  """A conversation and its rendered text.

  Attributes:
    source, special: see `template.render`.
    messages: from `template.normalized`.
    tools: JSON schemas of functions, or None.
    text: the rendered conversation.
    tokenizer: a `Tokenizer`.
    characters: private-use characters: two for {% generation %}, one a message.
  """

  source: str
  special: dict[str, str]
  messages: list[dict]
  tools: list | None
  text: str
  tokenizer: Any
  characters: list[str]

  @property
  def eos_ids(self) -> tuple[int, ...]:
    """Ids at which generation stops."""
    return self.tokenizer.eos_ids

  @functools.cached_property
  def tokens(self) -> list[tuple[int, int, int]]:
    """[(start, end, id)] of the special tokens in the text, in characters."""
    return self.special_tokens(self.text)

  def special_tokens(self, text: str) -> list[tuple[int, int, int]]:
    """[(start, end, id)] of the special tokens in a text, in characters."""
    encoding = self.tokenizer.encoding(text)
    return [
      (start, end, i)
      for i, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
      if i in self.tokenizer.special_ids
    ]

  def render(self, messages, generation_prompt=False, tags=None) -> str:
    """The text of messages, see `template.render`."""
    return template.render(
      self.source, messages, generation_prompt, self.special, self.tools, tags
    )


def find(this: Chat) -> list[tuple[int, int]]:
  """Spans of the answers, from marks in the messages.

  Raises:
    InputError: no placement of marks leaves the text as it is and finds all answers.
  """
  reasons = []
  for marked, found in _placed(this):
    try:
      return _located(this, marked, found)
    except InputError as e:
      reasons.append(str(e))
  reason = reasons[0] if reasons else "it depends on the messages' exact characters"
  if not reasons and any(isinstance(m.get("content"), list) for m in this.messages):
    reason += "; perhaps it needs contents as texts, not lists"
  raise InputError(f"the answers cannot be found in the chat template's text: {reason}")


def _placed(this: Chat):
  """Yields (messages with marks, [(position, message)] of the marks in the text).

  Only those placements of marks that change nothing else of the text.
  """
  letters = this.characters[2:]
  for tags, calls in _PLACEMENTS:
    marked = [
      marks.put(m, c, tags, calls) for m, c in zip(this.messages, letters, strict=True)
    ]
    try:
      text, found = marks.take(this.render(marked), letters)
    except InputError:  # the template looks for something that the marks hide
      continue
    if text == this.text:
      yield marked, found


def check_printed(this: Chat):
  """Raises InputError if the template prints nothing of what an answer says."""
  answers = [
    i
    for i, message in enumerate(this.messages)
    if message["role"] == "assistant" and not marks.is_empty(message)
  ]
  missing = None
  for _, found in _placed(this):
    shown = {which for _, which in found}
    missing = [i for i in missing or answers if i not in shown]
    if not missing:
      return
  for i in missing or ():
    _check_dropped(this, i)
  lists = [i for i in answers if isinstance(this.messages[i].get("content"), list)]
  if missing is None and lists:
    raise InputError(f"message {lists[0]} cannot be found in the text: {_UNSTABLE}")


def _located(this: Chat, marked, found) -> list[tuple[int, int]]:
  """The answers' spans, from the places of the marks.

  Args:
    this: the conversation.
    marked: its messages with marks.
    found: [(position, number of the message)] of all marks in the text.
  """
  spans = []
  for i, message in enumerate(this.messages):
    if message["role"] != "assistant" or marks.is_empty(message):
      continue
    at = [k for k, (_, which) in enumerate(found) if which == i]
    if not at:
      _check_dropped(this, i)
      continue
    placed = json.dumps(marked[i], ensure_ascii=False).count(this.characters[2 + i])
    if at != list(range(at[0], at[-1] + 1)) or len(at) > placed:
      raise InputError(f"message {i} is printed twice, or mixed with others")
    before = found[at[0] - 1] if at[0] else (0, None)
    after = found[at[-1] + 1][0] if at[-1] + 1 < len(found) else len(this.text)
    start = _start(this, marked, i, before, found[at[0]][0])
    spans.append((start, _end(this, marked, i, found[at[-1]][0], after)))
  return sorted(spans)


def _check_dropped(this: Chat, i: int):
  """Raises InputError if the template prints something for message i.

  Its text is known to be nowhere.
  """
  rest = this.messages[:i] + this.messages[i + 1 :]
  try:
    dropped = this.render(rest) == this.text
  except InputError:
    dropped = False
  if not dropped:
    kind = isinstance(this.messages[i].get("content"), list)
    other = "one text" if kind else 'a list, [{"type": "text", "text": "..."}]'
    raise InputError(
      f"the chat template does not print what message {i} (the assistant's) says; "
      f"perhaps it needs the content as {other}, or it has no tool calls"
    )


def _start(this: Chat, marked, i: int, before, first: int) -> int:
  """Where answer i begins: after the header from which it would be generated.

  Args:
    this, marked, i: see `_located`.
    before: (position, message) of the last mark before the answer's marks.
    first: position of the answer's first mark.
  """
  at, which = before
  gap = this.text[at:first]
  if i == 0 and not {"tool_calls", "reasoning_content"} & set(marked[i]):
    return first  # nothing says where the header ends, but all of the answer is text
  header, last = _header(this, marked, i)
  common = _common(header, gap)
  if last != which or not _agree(header, gap, common, this.special_tokens(header)):
    raise InputError(
      f"message {i} does not follow the template's generation prompt "
      f"{header[-80:]!r}, but {gap[-80:]!r}; mark the answers with {{% generation %}} "
      "in the template"
    )
  if header[common:].strip():  # they part within a tag: "<think>" and "<b>"
    tag = gap.rfind("<", 0, common)
    common = tag if tag >= 0 and ">" not in gap[tag:common] else common
  return at + common + _other_header(this, marked, i, gap[common:])


def _other_header(this: Chat, marked, i: int, rest: str) -> int:
  """Length of the header that the first answer has, too, if `rest` begins with it.

  After a tool's result, a template may have no generation prompt, and still write the
  header before the answer.
  """
  j = next(j for j, m in enumerate(marked) if j and m["role"] == "assistant")
  found = this.special_tokens(rest)
  if j >= i or not found or rest[: found[0][0]].strip():
    return 0
  header = _header(this, marked, j)[0]
  tokens = this.special_tokens(header)
  last = header[tokens[-1][0] :] if tokens else ""
  return found[0][0] + len(last) if last and rest[found[0][0] :].startswith(last) else 0


def _header(this: Chat, marked, i: int) -> tuple[str, int | None]:
  """(generation prompt before message i from the last mark on, that mark's message)."""
  prompt, found = marks.take(this.render(marked[:i], True), this.characters[2:])
  position, last = found[-1] if found else (0, None)
  return prompt[position:], last


def _agree(header: str, gap: str, common: int, tokens) -> bool:
  """Whether an answer's header ends within the first `common` characters of `gap`.

  Templates may put another header before earlier answers, e.g. one without <think>.

  Args:
    header: the generation prompt.
    gap: what the template writes before the answer's first character.
    common: number of characters that both begin with.
    tokens: special tokens of the header.
  """
  rest, more = header[common:], gap[common:]
  following = rest[:1] + more[:1]
  within_word = gap[:common][-1:].isalnum() and any(map(str.isalnum, following))
  if rest and within_word:
    return False
  space = not rest.strip() or not more.strip()
  return space or (bool(tokens) and common >= tokens[-1][1])


def _end(this: Chat, marked, i: int, last: int, after: int) -> int:
  """Where answer i ends: after its end token, or what the template has instead.

  Args:
    this, marked, i: see `_located`.
    last: position of the answer's last mark.
    after: position of the next message's first mark.
  """
  gap = this.text[last:after]
  tokens = [(a - last, b - last, t) for a, b, t in this.tokens if last <= a < after]
  stop = next((b for _, b, t in tokens if t in this.eos_ids), None)
  if stop is not None:
    return last + stop
  if i == len(marked) - 1:
    tail, ends = gap, tokens
  else:
    alone, found = marks.take(this.render(marked[: i + 1]), this.characters[2:])
    tail = alone[found[-1][0] :] if found and found[-1][1] == i else ""
    ends = this.special_tokens(tail)
  common = _common(gap, tail)
  inside = [b for _, b, _ in tokens if b <= common]
  if inside:
    return last + inside[-1]
  # gpt-oss ends the last answer with another token than the answers before it.
  other = len(tokens) > 1 and ends and gap[: tokens[0][0]] == tail[: ends[0][0]]
  return last + (tokens[0][1] if other else common)


def _common(a: str, b: str) -> int:
  """Length of the longest common start."""
  pairs = enumerate(zip(a, b, strict=False))
  return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
