"""Tasks of problems that are tried, checked and tried again; see `data.tries`.

`roles` gives the prompts of a strategy. They are starts of the transcripts on which
such a model is trained.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jaxpeft.data import tries

INVALID = "[invalid]"
RULES = ("strict",)


@dataclasses.dataclass(frozen=True)
class Tries:
  """The task for one kind of problem.

  Attributes:
    kind: the `data.tries.Problem`.
    check: function that raises InputError for a row that is no such problem.
  """

  kind: Any
  check: Callable[[dict], None]
  RULES = RULES

  def prompt(self, row: dict, shots: Sequence[dict] = ()) -> str:
    """The problem up to its first try, after solved problems if there are `shots`.

    Raises:
      InputError: a row is no such problem.
    """
    before = []
    for shot in shots:
      self.check(shot)
      before += [x["text"] for x in tries.transcript(self.kind, shot)] + ["\n"]
    self.check(row)
    return "".join([*before, self.kind.head(row), "Try:"])

  def completions(self, row: dict) -> tuple[str, ...]:
    """Nothing to score: answers are generated."""
    return ()

  def gold(self, row: dict) -> str:
    """The right try.

    Raises:
      InputError: the row is no such problem.
    """
    self.check(row)
    return self.kind.gold(row)

  def cut(self, text: str) -> str:
    """The text up to the end of the try."""
    return text.split(self.kind.MARK)[0]

  def answer(self, text: str, rule: str = "strict") -> str:
    """What a try says, in one form, or `INVALID`."""
    found = self.kind.value(self.cut(text))
    return INVALID if found is None else found

  def score(self, text: str, row: dict) -> dict[str, bool]:
    """Whether the try is right."""
    return {"strict": self.kind.right(row, self.cut(text))}

  def roles(self, options) -> "Roles":
    """The prompts of a strategy; there are no options."""
    return Roles(self)


@dataclasses.dataclass(frozen=True)
class Roles:
  """What a model is asked in each operation of a strategy.

  Attributes:
    task: whose problems they are.
  """

  task: Tries

  @property
  def stop(self) -> dict[str, tuple[str, ...]]:
    """{operation: texts that end what is said}."""
    mark = self.task.kind.MARK
    return dict(sample=(mark,), verify=("\n",), correct=(mark,))

  @property
  def limit(self) -> dict[str, int | None]:
    """{operation: most new tokens}."""
    new, check = self.task.kind.LIMITS
    return dict(sample=new, verify=check, correct=new)

  def sample(self, row: dict, shots: Sequence[dict] = ()) -> str:
    """The problem up to its first try."""
    return self.task.prompt(row, shots)

  def verify(self, row: dict, history: Sequence[tuple[str, str]], answer: str) -> str:
    """The transcript up to the check of a try."""
    return f"{self.correct(row, history)} {answer}{self.task.kind.MARK}"

  def correct(self, row: dict, history: Sequence[tuple[str, str]]) -> str:
    """The transcript up to the next try, after (try, check) pairs, oldest first."""
    kind = self.task.kind
    lines = [f"Try: {x}{kind.MARK}{_line(check)}\n" for x, check in history]
    return "".join([kind.head(row), *lines, "Try:"])

  def verdict(self, text: str) -> bool:
    """Whether a check says yes; one that says neither is a no."""
    return _line(text).endswith("yes")

  def answer(self, text: str) -> str:
    """The try in what was generated, as it is put into later prompts."""
    return self.task.cut(text).strip()


def _line(text: str) -> str:
  """The first line of a text."""
  return text.split("\n")[0].strip()
