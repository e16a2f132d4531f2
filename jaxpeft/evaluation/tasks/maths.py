"""MATH [Hendrycks et al. 2021]: an answer counts if it equals the right one.

Answers are compared by the package math-verify, so \\frac{1}{2} equals 0.5. Two rules:
  strict: what the last \\boxed{...} of the text has.
  flexible: what math-verify finds in the text, boxed or not.
The right answer of a row is its `answer`, or else what `solution` has in \\boxed{...}.
The problem is `problem`, or `question`.
"""

import re
import sys
from collections.abc import Sequence

from jaxpeft.data import formats, plans
from jaxpeft.errors import InputError
from jaxpeft.evaluation import equivalence

INVALID = "[invalid]"
RULES = ("strict", "flexible")
EXPERT = "solving math problems"
WHAT = "QUESTION"
STOP = ("Problem:", "Question:")
_BOXED = re.compile(r"\\f?boxed\s*\{")


def make(options, rows: Sequence[dict] = ()):
  """This module: the task has no options.

  Raises:
    InputError: math-verify is not installed.
  """
  equivalence.check()
  return sys.modules[__name__]


def prompt(row: dict, shots: Sequence[dict] = ()) -> str:
  """The problem as it is trained on, after solved ones if there are `shots`."""
  solved = ["".join(_split(shot)) for shot in shots]
  return "\n\n".join([*solved, _split(row)[0]])


def completions(row: dict) -> tuple[str, ...]:
  """Nothing to score: answers are generated."""
  return ()


def gold(row: dict) -> str:
  """The right answer of a row: `answer`, or what is boxed last in `solution`.

  Raises:
    InputError: it has none.
  """
  if isinstance(row.get("answer"), str) and row["answer"].strip():
    return boxed(row["answer"]) or row["answer"].strip()
  found = boxed(row["solution"]) if isinstance(row.get("solution"), str) else None
  if not found:
    raise InputError(
      "task math needs the right answer of a row as `answer`, or in \\boxed{...} of "
      f"`solution`; this row has {sorted(map(str, row))[:12]}"
    )
  return found


def boxed(text: str) -> str | None:
  """The content of the last \\boxed{...} of a text, or None."""
  starts = [x.end() for x in _BOXED.finditer(text)]
  if not starts:
    return None
  depth = 1
  for i in range(starts[-1], len(text)):
    depth += (text[i] == "{") - (text[i] == "}")
    if not depth:
      return text[starts[-1] : i].strip()
  return None


def cut(text: str) -> str:
  """The text up to the next problem, which a base model may make up."""
  for stop in STOP:
    text = text.split(stop)[0]
  return text


def answer(text: str, rule: str = "strict") -> str:
  """The answer in a text, equal for many equal ones as 1/2 and 0.5; or `INVALID`."""
  read = _read(text, rule)
  return (read and equivalence.canonical(read)) or INVALID


def score(text: str, row: dict) -> dict[str, bool]:
  """Whether the text's answer is the row's, by either rule."""
  right = gold(row)
  texts = {rule: _read(text, rule) for rule in RULES}
  return {x: bool(read) and equivalence.same(read, right) for x, read in texts.items()}


def _read(text: str, rule: str) -> str:
  """What of a text a rule reads; "" if nothing."""
  if rule == "flexible":
    return text
  found = boxed(text)
  return f"\\boxed{{{found}}}" if found else ""


def _split(row: dict) -> tuple[str, str]:
  if row.get("question") is not None and row.get("answer") is not None:
    return formats.prompt_and_completion(row, "question/answer")
  if not isinstance(row.get("problem"), str):
    raise InputError(
      "task math needs rows with `problem` and `solution` or `answer`, or with "
      f"`question` and `answer`; this row has {sorted(map(str, row))[:12]}"
    )
  if not isinstance(row.get("solution"), str):
    row = row | dict(solution=f"\\boxed{{{gold(row)}}}")
  return plans.split(row, "problem/solution")
