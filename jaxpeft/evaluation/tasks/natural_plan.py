"""NATURAL PLAN [Zheng et al. 2024, arXiv 2406.04520]: what its three tasks share.

A row has the fields of the official files. Scores are those of the official scripts,
google-deepmind/natural-plan. A reply on which such a script crashes is wrong.
"""

import dataclasses
from collections.abc import Callable, Sequence

from jaxpeft.data import plans
from jaxpeft.errors import InputError

INVALID = "[invalid]"
_TASK, _SOLUTION = "TASK: ", "SOLUTION:"
_ASK = "\n\nYour response should start with 'SOLUTION:'."


@dataclasses.dataclass(frozen=True)
class Plan:
  """One of the three tasks.

  Attributes:
    name: in `tasks.TASKS`.
    EXPERT: what the model is an expert at, for the prompts of strategies.
    head: what a prompt with shots says first.
    check: raises InputError unless a row has what the scores need.
    read: text -> the plan in it, as a canonical text; or `INVALID`.
    right: (text, row) -> {rule: bool}.
    RULES: names of the rules.
    own_shots: whether a prompt is the row's own `prompt_5shot`.
  """

  name: str
  EXPERT: str
  head: str
  check: Callable[[dict], None]
  read: Callable[[str], str]
  right: Callable[[str, dict], dict[str, bool]]
  RULES: tuple[str, ...] = ("strict",)
  own_shots: bool = False
  WHAT = "TASK"
  STOP = ("\nTASK:",)

  def prompt(self, row: dict, shots: Sequence[dict] = ()) -> str:
    """`prompt_0shot`, on which is also trained; or a prompt after solved examples.

    Raises:
      InputError: a row that is no problem of this task.
    """
    self._check(row)
    if shots:
      solved = [
        f"{_body(x)}{_SOLUTION} {_golden(x)}\n\n" for x in map(self._own, shots)
      ]
      return f"{self.head}\n\n{''.join(solved)}{_body(row)}{_SOLUTION}"
    if not self.own_shots:
      return row["prompt_0shot"]
    if not isinstance(row.get("prompt_5shot"), str):
      raise InputError(
        f"eval.own_shots needs rows with `prompt_5shot`, a text; this row has "
        f"{sorted(map(str, row))[:12]}; set eval.own_shots=False, or eval.shots=5"
      )
    return row["prompt_5shot"]

  def completions(self, row: dict) -> tuple[str, ...]:
    """Nothing to score: answers are generated."""
    return ()

  def gold(self, row: dict) -> str:
    """The golden plan, as `answer` gives a plan."""
    self._check(row)
    return self.read(_golden(row))

  def cut(self, text: str) -> str:
    """The text up to the next task, which a base model may make up."""
    for stop in self.STOP:
      text = text.split(stop)[0]
    return text

  def answer(self, text: str, rule: str = "strict") -> str:
    """The plan that a text gives, as a canonical text; or `INVALID`."""
    return self.read(text)

  def score(self, text: str, row: dict) -> dict[str, bool]:
    """Whether the official script counts the text as right."""
    return self.right(text, row)

  def _own(self, row: dict) -> dict:
    self._check(row)
    return row

  def _check(self, row: dict):
    for field in plans.FORMS["natural plan"]:
      if field not in row:
        raise InputError(
          f"task {self.name} needs rows of NATURAL PLAN, with `{field}`; this row has "
          f"{sorted(map(str, row))[:12]}"
        )
    plans.checked(row, "natural plan", f"task {self.name}: a row")
    try:
      self.check(row)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as e:
      if isinstance(e, InputError):
        raise
      raise InputError(
        f"task {self.name}: a row does not have the fields of the official file: "
        f"{type(e).__name__}: {str(e)[:200]}"
      ) from e


def _golden(row: dict) -> str:
  plan = row["golden_plan"]
  return (" ".join(plan) if isinstance(plan, list) else plan).strip()


def _body(row: dict) -> str:
  """The problem of a row without a head and a cue, as one of several TASKs."""
  text = row["prompt_0shot"].removesuffix(_ASK)
  text = text.split(_TASK, 1)[-1].rstrip().removesuffix(_SOLUTION)
  return f"{_TASK}{text.rstrip()}\n"
