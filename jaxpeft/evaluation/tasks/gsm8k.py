"""GSM8K [Cobbe et al. 2021], scored exactly as lm-evaluation-harness scores it.

Its task `gsm8k`: two extraction rules, then a comparison of texts after a few
deletions (18.0 is not 18).
"""

import re
import sys
from collections.abc import Sequence

from jaxpeft.data import sources
from jaxpeft.errors import InputError

_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = (",", r"\$", r"(?s).*#### ", r"\.$")
_UNTIL = ("Question:", "</s>", "<|im_end|>")
INVALID = "[invalid]"
OTHERS = (
  "for rows of your own set eval.task=exact (the answer is the completion), "
  "eval.task=choice (it is one of some labels), or eval.task='' for the loss only"
)
RULES = ("strict", "flexible")


def make(options, rows: Sequence[dict] = ()):
  """This module: the task has no options and needs no labels."""
  return sys.modules[__name__]


def prompt(row: dict, shots: Sequence[dict] = ()) -> str:
  """The question as the harness words it, after solved examples if there are `shots`.

  Without shots it is also the prompt that training uses.

  Raises:
    InputError: a row that is no problem with an answer in GSM8K's format.
  """
  _check(row)
  solved = ["".join(sources.prompt_and_completion(x, "question/answer")) for x in shots]
  question = sources.prompt_and_completion(row, "question/answer")[0]
  return "\n\n".join([*solved, question])


def completions(row: dict) -> tuple[str, ...]:
  """Nothing to score: answers are generated."""
  return ()


def gold(row: dict) -> str:
  """The number behind the #### of a row's answer."""
  return strict(row["answer"])


def _check(row: dict):
  if not ("question" in row and "answer" in row):
    raise InputError(
      f"task gsm8k needs rows with question and answer, not {', '.join(sorted(row))}; "
      f"{OTHERS}"
    )
  if strict(str(row["answer"])) == INVALID:
    raise InputError(
      "task gsm8k scores the number behind '#### ', which this answer lacks: "
      f"{str(row['answer'])[-60:]!r}; {OTHERS}"
    )


def cut(text: str) -> str:
  """The text up to where the harness stops generating."""
  for stop in _UNTIL:
    text = text.split(stop)[0]
  return text


def strict(text: str) -> str:
  """The number behind the first ####."""
  found = _STRICT.search(text)
  return found[1].strip() if found else INVALID


def flexible(text: str) -> str:
  """The last number of the text."""
  found = _FLEXIBLE.findall(text)
  return next(filter(None, found[-1])).strip() if found else INVALID


def answer(text: str, rule: str = "strict") -> str:
  """The number that a rule finds in a text, or `INVALID`."""
  return {"strict": strict, "flexible": flexible}[rule](text)


def score(text: str, row: dict) -> dict[str, bool]:
  """Whether the text's answer is the row's, by either rule."""
  gold = _bare(row["answer"])
  return {rule: _bare(answer(text, rule)) == gold for rule in RULES}


def _bare(text: str) -> str:
  for pattern in _IGNORED:
    text = re.sub(pattern, "", text)
  return text.lower()
