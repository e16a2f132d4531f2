"""Budget: which two prices make the budget? Checking it is easier than solving it.

The embedded task of `data.budget`, whose transcripts teach a model to try, to check its
tries and to try again. A row has `prices` and `total`; an answer is a pair, "34+57", in
any order. `roles` gives the prompts of a strategy: starts of such a transcript.
"""

import dataclasses
import sys
from collections.abc import Sequence

from jaxpeft.data import budget
from jaxpeft.errors import InputError

INVALID = "[invalid]"
RULES = ("strict",)


def make(options, rows: Sequence[dict] = ()):
  """This module: the task has no options and needs no labels."""
  return sys.modules[__name__]


def prompt(row: dict, shots: Sequence[dict] = ()) -> str:
  """The problem up to its first try, after solved problems if there are `shots`.

  Raises:
    InputError: a row that is no problem, or one with no solution.
  """
  before = []
  for shot in shots:
    gold(shot)
    before += [x["text"] for x in budget.transcript(shot, [])] + ["\n"]
  gold(row)
  return "".join([*before, budget.head(row), "Try:"])


def completions(row: dict) -> tuple[str, ...]:
  """Nothing to score: answers are generated."""
  return ()


def gold(row: dict) -> str:
  """The right pair.

  Raises:
    InputError: a row that is no problem, or one with no solution.
  """
  prices, total = row.get("prices"), row.get("total")
  numbers = [*prices, total] if isinstance(prices, list) else [None]
  if not all(type(x) is int and 0 <= x < 1000 for x in numbers):
    raise InputError(
      "task budget needs rows with `prices`, a list of whole numbers below 1000, and "
      f"`total`, one such number; this row has {sorted(map(str, row))[:8]}"
    )
  found = budget.gold(row)
  if not found or not budget.right(row, found):
    raise InputError(
      f"task budget: no two different numbers of `prices` make `total` {total}"
    )
  return found


def cut(text: str) -> str:
  """The text up to the end of the try."""
  return text.split(budget.MARK)[0]


def answer(text: str, rule: str = "strict") -> str:
  """The pair of a try, the smaller number first, or `INVALID`."""
  found = budget.pair(cut(text))
  return INVALID if found is None else "{}+{}".format(*found)


def score(text: str, row: dict) -> dict[str, bool]:
  """Whether the try makes the budget."""
  return {"strict": budget.right(row, cut(text))}


@dataclasses.dataclass(frozen=True)
class Roles:
  """What a model is asked in each operation of a strategy.

  Attributes:
    stop: {operation: texts that end what it says}.
    limit: {operation: most new tokens}, each digit being one.
  """

  stop = {"sample": (budget.MARK,), "verify": ("\n",), "correct": (budget.MARK,)}  # noqa: RUF012
  limit = {"sample": 8, "verify": 12, "correct": 8}  # noqa: RUF012

  def sample(self, row: dict, shots: Sequence[dict] = ()) -> str:
    """The problem up to its first try."""
    return prompt(row, shots)

  def verify(self, row: dict, history: Sequence[tuple[str, str]], answer: str) -> str:
    """The transcript up to the check of a try."""
    return f"{self.correct(row, history)} {answer}{budget.MARK}"

  def correct(self, row: dict, history: Sequence[tuple[str, str]]) -> str:
    """The transcript up to the next try, after (try, check) pairs, oldest first."""
    tries = [f"Try: {x}{budget.MARK}{check.strip()}\n" for x, check in history]
    return "".join([budget.head(row), *tries, "Try:"])

  def verdict(self, text: str) -> bool:
    """Whether a check says yes; one that says neither is a no."""
    return text.split("\n")[0].strip().endswith("yes")

  def answer(self, text: str) -> str:
    """The try in what was generated, as it is put into later prompts."""
    return cut(text).strip()


def roles(options) -> Roles:
  """The prompts of a strategy; there are no options."""
  return Roles()
