"""GSM8K [Cobbe et al. 2021], scored exactly as lm-evaluation-harness scores it.

Its task `gsm8k`: two extraction rules, then a comparison of texts after a few
deletions (18.0 is not 18).
"""

import re

from jaxpeft.data import sources
from jaxpeft.errors import InputError

_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = (",", r"\$", r"(?s).*#### ", r"\.$")
_UNTIL = ("Question:", "</s>", "<|im_end|>")
INVALID = "[invalid]"
RULES = ("strict", "flexible")


def prompt(row: dict) -> str:
  """The question as it is trained on, and as the harness words it without examples."""
  if not ("question" in row and "answer" in row):
    raise InputError(
      f"task gsm8k needs rows with question and answer, not {sorted(row)}; "
      "set data.eval to such a file, or eval.task='' for the loss only"
    )
  if strict(str(row["answer"])) == INVALID:
    raise InputError(
      "task gsm8k scores the number behind '#### ', which this answer lacks: "
      f"{str(row['answer'])[-60:]!r}; correct data.eval, or set eval.task=''"
    )
  return sources.prompt_and_completion(row, "question/answer")[0]


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


def score(text: str, row: dict) -> dict[str, bool]:
  """Whether the text's answer is the row's, by either rule."""
  gold = _bare(row["answer"])
  return {
    "strict": _bare(strict(text)) == gold,
    "flexible": _bare(flexible(text)) == gold,
  }


def _bare(text: str) -> str:
  for pattern in _IGNORED:
    text = re.sub(pattern, "", text)
  return text.lower()
