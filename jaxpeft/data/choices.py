"""Rows with a question and their own choices, as multiple-choice benchmarks have them.

The question is `question`, or `prompt`, which is taken as it is. `choices` is a list of
texts, or {"text": texts, "label": names} as in ARC. The right one is `answer`, `label`
or `answerKey`: its index from 0, its text, or its name (in ARC's form, or A, B, C ...).
"""

import string
from typing import NamedTuple

from jaxpeft.errors import InputError

FIELD = "choices"
RIGHT = ("answer", "label", "answerKey")
_MOST = 200


class Choices(NamedTuple):
  """A question, its choices, and the index of the right one."""

  question: str
  texts: tuple[str, ...]
  right: int
  worded: bool  # whether the question is worded as in `formats`, or taken as it is

  def prompt(self) -> str:
    """The text before the answer."""
    return f"Question: {self.question}\nAnswer:" if self.worded else self.question

  def options(self) -> list[tuple[str, str]]:
    """(choice, the completion that gives it) of each choice."""
    return [(text, f" {text}" if self.worded else text) for text in self.texts]


def has(row) -> bool:
  """Whether a row brings choices of its own."""
  return (
    isinstance(row, dict)
    and isinstance(row.get(FIELD), list | dict)
    and any(row.get(name) is not None for name in RIGHT)
    and any(isinstance(row.get(name), str) for name in ("question", "prompt"))
  )


def parse(row: dict, place: str) -> Choices:
  """The choices of a row that `has` them.

  Raises:
    InputError: they are no texts, or the right one is none of them.
  """
  given = row[FIELD]
  texts = given.get("text") if isinstance(given, dict) else given
  names = given.get("label") if isinstance(given, dict) else None
  if not (
    isinstance(texts, list)
    and 2 <= len(texts) <= _MOST
    and all(isinstance(x, str) and x.strip() for x in texts)
  ):
    raise InputError(
      f"{place}: `{FIELD}` must be a list of 2 to {_MOST} texts, or "
      '{"text": [...], "label": [...]}'
    )
  if not (isinstance(names, list) and len(names) == len(texts)):
    names = list(string.ascii_uppercase[: len(texts)])
  field = next(name for name in RIGHT if row.get(name) is not None)
  right = _index(row[field], texts, [str(x) for x in names])
  if right is None:
    raise InputError(
      f"{place}: `{field}` is {str(row[field])[:60]!r}; it must be the index from 0, "
      f"the text or the name of one of {len(texts)} choices"
    )
  worded = isinstance(row.get("question"), str)
  question = row["question" if worded else "prompt"]
  return Choices(question, tuple(texts), right, worded)


def _index(right, texts: list[str], names: list[str]) -> int | None:
  if isinstance(right, str):
    for known in (texts, names):
      if right.strip() in [x.strip() for x in known]:
        return [x.strip() for x in known].index(right.strip())
    right = int(right) if right.strip().isdecimal() and len(right) < 9 else None
  if type(right) is int and 0 <= right < len(texts):
    return right
  return None
