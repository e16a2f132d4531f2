"""Forms of a row that says which of its answers is better.

A row has one of these forms; the first three may also have `margin`, a number.
* prompt, chosen, rejected: texts. A model reads the prompt and an answer without a gap.
* chosen, rejected: texts that begin alike. Their common beginning is the prompt: up to
  the last "\\n\\nAssistant:" in it, as in the HH data, or else as many whole words.
* chosen, rejected: lists of messages, after those of `prompt` if that is a list, too.
  Otherwise their common beginning is the prompt.
* prompt, ranked: 2 to 8 answers, the best first.
A row that has two equal answers is a tie, which says nothing and is left out.
"""

import itertools
import json
import math
from typing import NamedTuple

from jaxpeft.data import formats
from jaxpeft.errors import InputError

MARK = "\n\nAssistant:"  # ends the prompt in the HH data [Bai et al. 2022]
MOST = 8  # answers of a row


class Preference(NamedTuple):
  """A prompt and its answers: texts, or lists of messages."""

  prompt: str | list[dict]
  answers: tuple  # of texts, or of lists of messages; the best first
  tools: list | None = None  # JSON schemas, for messages
  margin: float = 0.0  # by how much the first is better than the second

  @property
  def tie(self) -> bool:
    """Whether two answers are equal."""
    return any(a == b for a, b in itertools.combinations(self.answers, 2))

  @property
  def chats(self) -> bool:
    """Whether the prompt and the answers are messages."""
    return isinstance(self.prompt, list)


def has(row) -> bool:
  """Whether a row holds a preference, judged by its fields."""
  fields = [formats.FORMATS[name] for name in formats.PREFERENCES]
  return isinstance(row, dict) and any(
    all(row.get(field) is not None for field in some) for some in fields
  )


def parse(row, place: str) -> Preference:
  """The preference that a row holds.

  Args:
    row: a dict; fields of other forms are ignored.
    place: where the row is, for error messages.
  Raises:
    InputError: the row has no preference, or a field has a wrong type.
  """
  if not has(row):
    form, _ = formats.checked(row, place)  # says what is wrong with other rows
    raise InputError(
      f"{place}: has the form {form}; objective.name 'reward' or 'preference' needs "
      "chosen and rejected, or prompt and ranked. Set objective.name='supervised' to "
      "learn such answers"
    )
  names, answers = _answers(row, place)
  prompt, margin = row.get("prompt"), _margin(row, len(answers), place)
  if not isinstance(prompt, str | list | None):
    kind = type(prompt).__name__
    raise InputError(f"{place}: `prompt` must be a text or a list, not {kind}")
  if isinstance(prompt, list) or isinstance(answers[0], list):
    return _conversations(row, prompt, names, answers, margin, place)
  total = 0
  for name, text in zip(("prompt", *names), (prompt or "", *answers), strict=True):
    formats.check_characters(text, name, place)
    total += len(text)
  formats.check_size(total, place)
  if prompt is None:
    at = _common(answers)
    prompt, answers = answers[0][:at], [text[at:] for text in answers]
  return Preference(prompt, tuple(answers), None, margin)


def _answers(row: dict, place: str) -> tuple[list[str], list]:
  """(names, answers): all texts, or all lists."""
  if row.get("chosen") is not None and row.get("rejected") is not None:
    names, found = ["chosen", "rejected"], [row["chosen"], row["rejected"]]
  else:
    found = row["ranked"]
    if isinstance(found, str):  # in a CSV file
      try:
        found = json.loads(found)
      except (ValueError, RecursionError) as e:
        raise InputError(f"{place}: `ranked` must be a list of answers: {e}") from e
    if not isinstance(found, list) or not 2 <= len(found) <= MOST:
      size = len(found) if isinstance(found, list) else type(found).__name__
      raise InputError(
        f"{place}: `ranked` must be a list of 2 to {MOST} answers, not {size}"
      )
    names = [f"ranked[{i}]" for i in range(len(found))]
  kinds = {str if isinstance(x, str) else type(x) for x in found}
  if kinds not in ({str}, {list}):
    shown = " and ".join(sorted(kind.__name__ for kind in kinds))
    raise InputError(
      f"{place}: {', '.join(f'`{x}`' for x in names[:2])} must all be texts, or all "
      f"lists of messages, not {shown}"
    )
  return names, found


def _margin(row: dict, answers: int, place: str) -> float:
  value = row.get("margin")
  if value is None:
    return 0.0
  try:
    number = math.nan if isinstance(value, bool) else float(value)
  except (ValueError, TypeError, OverflowError):
    number = math.nan
  if not abs(number) <= 1e6:
    raise InputError(
      f"{place}: `margin` is {str(value)[:40]!r}; it must be a number, at most 1e6"
    )
  if number and answers > 2:
    raise InputError(
      f"{place}: `margin` {number:g} is for two answers; `ranked` has {answers}"
    )
  return number


def _common(texts: list[str]) -> int:
  """How many characters the implicit prompt of texts has."""
  least, most = min(texts), max(texts)  # what these share, all share
  same = itertools.takewhile(lambda x: x[0] == x[1], zip(least, most, strict=False))
  shared = least[: sum(1 for _ in same)]
  at = shared.rfind(MARK)
  if at >= 0:
    return at + len(MARK)
  ends = len(shared) == min(map(len, texts))  # each needs an answer
  whole = not ends and all(text[len(shared)].isspace() for text in texts)
  if whole:
    return len(shared)
  return max((i for i, x in enumerate(shared) if x.isspace()), default=0)


def _conversations(row, prompt, names, answers, margin: float, place: str):
  """The preference of messages; texts are turns of the assistant after a list."""
  tools, before = None, []
  if isinstance(prompt, list) and prompt:
    given = dict(prompt=prompt, tools=row.get("tools"))
    before, tools = formats.chat(given, "prompt", place).values()
  turns = []
  for name, answer in zip(names, answers, strict=True):
    if isinstance(answer, str):
      answer = [dict(role="assistant", content=answer)]
    found = formats.chat({name: answer, "tools": row.get("tools")}, name, place)
    tools, answer = found["tools"], found["messages"]
    if answer[-1]["role"] not in ("assistant", "model"):
      raise InputError(
        f"{place}: `{name}` ends with a turn of {answer[-1]['role']!r}; its last "
        "message must be the assistant's"
      )
    alone = isinstance(prompt, str) and len(answer) == 1
    turns.append([dict(role="user", content=prompt), *answer] if alone else answer)
  if not before:
    same = itertools.takewhile(
      lambda some: all(x == some[0] for x in some), zip(*turns, strict=False)
    )
    shared = min(len(list(same)), *(len(x) - 1 for x in turns))
    before, turns = turns[0][:shared], [x[shared:] for x in turns]
  return Preference(before, tuple(turns), tools, margin)
