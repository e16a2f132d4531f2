"""Prices: which two of three prices make the total? See `data.prices`.

An answer is a pair, "16+38=54", in any order; the sum behind it is not scored. What is
sampled can be chosen among, by a vote or a reward. It cannot be verified or corrected:
the model has learned no words for that.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from jaxpeft.data import prices
from jaxpeft.errors import InputError
from jaxpeft.evaluation.tasks import price_rows

INVALID = "[invalid]"
RULES = ("strict",)


def make(options, rows: Sequence[dict] = ()):
  """This module: the task has no options."""
  return sys.modules[__name__]


def prompt(row: dict, shots: Sequence[dict] = ()) -> str:
  """The problem, after solved ones if there are `shots`.

  Raises:
    InputError: a row is no such problem.
  """
  before = [f"{prices.prompt(shot)} {gold(shot)}\n" for shot in shots]
  price_rows.check(row, "prices", prices.gold)
  return "".join([*before, prices.prompt(row)])


def completions(row: dict) -> tuple[str, ...]:
  """Nothing to score: answers are generated."""
  return ()


def gold(row: dict) -> str:
  """The right answer with its sum.

  Raises:
    InputError: the row is no such problem.
  """
  price_rows.check(row, "prices", prices.gold)
  a, b = prices.gold(row).split("+")
  return prices.written(int(a), int(b)).strip()


def cut(text: str) -> str:
  """The first line."""
  return text.split("\n")[0]


def answer(text: str, rule: str = "strict") -> str:
  """The pair that a text names, in one form, or `INVALID`."""
  found = prices.value(cut(text))
  return INVALID if found is None else found


def score(text: str, row: dict) -> dict[str, bool]:
  """Whether the pair is right."""
  return {"strict": prices.right(row, cut(text))}


def roles(options) -> "Roles":
  """The prompts of a strategy; there are no options."""
  return Roles()


@dataclasses.dataclass(frozen=True)
class Roles:
  """What a model is asked: samples only."""

  @property
  def stop(self) -> dict[str, tuple[str, ...]]:
    """{operation: texts that end what is said}: none but the end token."""
    return dict.fromkeys(("sample", "verify", "correct"), ())

  @property
  def limit(self) -> dict[str, int | None]:
    """{operation: most new tokens}."""
    return dict.fromkeys(("sample", "verify", "correct"), prices.NEW)

  def sample(self, row: dict, shots: Sequence[dict] = ()) -> str:
    """The task's own prompt."""
    return prompt(row, shots)

  def verify(self, row: dict, history: Any, answer: str) -> NoReturn:
    """Raises InputError: there are no words for it."""
    raise _silent("verify")

  def correct(self, row: dict, history: Any) -> NoReturn:
    """Raises InputError: there are no words for it."""
    raise _silent("correct")

  def verdict(self, text: str) -> bool:
    """Never asked."""
    return False

  def answer(self, text: str) -> str:
    """The answer in what was sampled."""
    return cut(text).strip()


def _silent(operation: str) -> InputError:
  return InputError(
    f"task prices: a model of this task has not learned to {operation} an answer; use "
    "eval.strategy self_consistency, weighted_vote, or best_of_n with eval.by reward, "
    "logprob or mean_logprob"
  )
