"""What may differ between two texts that count as the same answer.

All steps together are SQuAD's normalization [Rajpurkar et al. 2016, evaluate-v1.1.py].
"""

import re
import string

from jaxpeft.errors import unknown

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
STEPS = {  # in the order in which they are applied
  "lower": str.lower,
  "punctuation": lambda text: text.translate(_PUNCTUATION),
  "articles": lambda text: _ARTICLES.sub(" ", text),
  "spaces": lambda text: " ".join(text.split()),
  "strip": str.strip,
}
SQUAD = tuple(STEPS)


def parse(names: str) -> tuple[str, ...]:
  """The steps that `eval.normalize` names, with commas between them; "" is none.

  Raises:
    InputError: there is no such step.
  """
  found = {name.strip() for name in names.split(",") if name.strip()}
  for name in sorted(found):
    if name not in STEPS:
      raise unknown("step in eval.normalize", name, STEPS)
  return tuple(name for name in STEPS if name in found)


def normalize(text: str, steps: tuple[str, ...]) -> str:
  """The text after some of `STEPS`."""
  for name in steps:
    text = STEPS[name](text)
  return text
