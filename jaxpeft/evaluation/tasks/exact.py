"""Exact match: the answer of any row with a prompt and a completion.

A text's answer is what `eval.extract` finds in it; without that option it is as many of
its lines as the right answer has, since a model may go on. Two rules compare it with
the right answer, from which the same is taken:
  strict: equal after the steps of `eval.normalize`.
  flexible: equal after all steps, which is SQuAD's exact match.
"""

import dataclasses
from collections.abc import Sequence

from jaxpeft.errors import InputError
from jaxpeft.evaluation.tasks import extract, normalize, parts

INVALID = "[invalid]"
RULES = ("strict", "flexible")


@dataclasses.dataclass(frozen=True)
class Exact:
  """The task for some options.

  Attributes:
    steps: names in `normalize.STEPS`, for the rule "strict".
    pattern: `eval.extract`, or "".
  """

  steps: tuple[str, ...] = ("strip",)
  pattern: str = ""
  RULES = RULES

  def prompt(self, row: dict, shots: Sequence[dict] = ()) -> parts.Prompt:
    """The prompt as it is trained on, after solved examples if there are `shots`."""
    solved = [parts.split(shot, "exact") for shot in shots]
    return parts.with_shots(parts.split(row, "exact")[0], solved)

  def completions(self, row: dict) -> tuple[str, ...]:
    """Nothing to score: answers are generated."""
    return ()

  def gold(self, row: dict) -> str:
    """The right answer of a row.

    Raises:
      InputError: the row has none, or `eval.extract` does not find it.
    """
    return gold_of(parts.split(row, "exact")[1], self.pattern, "exact")

  def cut(self, text: str) -> str:
    """All of the text: an expression may find the answer anywhere."""
    return text

  def answer(self, text: str, rule: str = "strict", lines: int = 1) -> str:
    """The normalized answer that a text gives, or `INVALID`; `lines` are its lines."""
    found = answer_of(text, self.pattern, lines)
    return INVALID if found is None else self._normal(found, rule)

  def score(self, text: str, row: dict) -> dict[str, bool]:
    """Whether the text's answer is the row's, by either rule."""
    gold = self.gold(row)
    count = gold.count("\n") + 1
    return {
      rule: self.answer(text, rule, count) == self._normal(gold, rule) for rule in RULES
    }

  def _normal(self, text: str, rule: str) -> str:
    steps = self.steps if rule == "strict" else normalize.SQUAD
    return normalize.normalize(text, steps)


def make(options, rows: Sequence[dict] = ()) -> Exact:
  """The task for the options `config.eval`.

  Raises:
    InputError: an unknown step of normalization, or no regular expression.
  """
  extract.check(options.extract)
  return Exact(normalize.parse(options.normalize), options.extract)


def answer_of(text: str, pattern: str, lines: int = 1) -> str | None:
  """The answer that a text gives, or None: what the pattern finds, or some lines."""
  return extract.search(pattern, text) if pattern else extract.lines(text, lines)


def gold_of(completion: str, pattern: str, task: str) -> str:
  """The right answer that a completion gives.

  Raises:
    InputError: it has none.
  """
  found = answer_of(completion, pattern, len(completion))
  if found is None or not found.strip():
    raise InputError(
      f"task {task}: eval.extract {pattern!r} finds nothing in the right answer "
      f"{completion[-60:]!r}; change it, or set eval.extract=''"
      if pattern
      else f"task {task}: the right answer of a row is empty"
    )
  return found
