"""A time for a meeting (NATURAL PLAN), scored as by the official script.

The first time of the form "Monday, 13:30 - 14:30" counts. It is right if it is the
golden one, where minutes other than 30 count as 0.
"""

import dataclasses
import re
from collections.abc import Sequence

from jaxpeft.errors import InputError
from jaxpeft.evaluation.tasks import natural_plan

# The official pattern; the look-behind only saves time.
_TIME = re.compile(r"(?<![A-Za-z])([A-Za-z]+), ([0-9]+:[0-9]+) - ([0-9]+:[0-9]+)")
_NONE = ("", -1.0, -1.0)
_HEAD = (
  "You are an expert at scheduling meetings. You are given a few constraints on the "
  "existing schedule of each participant, the meeting duration, and possibly some "
  "preferences on the meeting time. Note there exists a solution that works with "
  "existing schedule of every participant. Here are a few example tasks and solutions:"
)


def parse(text: str) -> tuple[str, float, float]:
  """(day, start, end) of the first time in a text, in hours; ("", -1, -1) if none."""
  found = _TIME.search(text)
  return (found[1], _hour(found[2]), _hour(found[3])) if found else _NONE


def make(options, rows: Sequence[dict] = ()) -> natural_plan.Plan:
  """The task; `eval.own_shots` asks with the row's own five examples."""
  return dataclasses.replace(_TASK, own_shots=getattr(options, "own_shots", False))


def _hour(text: str) -> float:
  hours, minutes = text.split(":")
  return float(hours) + (0.5 if minutes == "30" else 0.0)


def _read(text: str) -> str:
  day, start, end = found = parse(text)
  return natural_plan.INVALID if found == _NONE else f"{day} {start:g}-{end:g}"


def _right(text: str, row: dict) -> dict[str, bool]:
  return {"strict": parse(text) == parse(row["golden_plan"])}


def _check(row: dict):
  if parse(row["golden_plan"]) == _NONE:
    raise InputError(
      "task calendar: `golden_plan` of a row has no time such as 'Monday, 13:30 - "
      f"14:30': {row['golden_plan'][:80]!r}"
    )


_TASK = natural_plan.Plan(
  "calendar", "scheduling meetings", _HEAD, _check, _read, _right
)
RULES = _TASK.RULES
