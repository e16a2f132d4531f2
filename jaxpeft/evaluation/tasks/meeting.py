"""Meeting friends in San Francisco (NATURAL PLAN), scored as by the official script.

A plan is walked through step by step; the minutes and times that it states for travels
and meetings are ignored. The first wrong step ends it, and what was met until then
counts. It is right if it meets as many friends as the golden plan. Two rules:
  strict: a plan on which the official script crashes (a travel to where one is, or to
    an unknown place; an unknown friend; "You travel home") is wrong.
  stops: such a step ends the plan as other wrong steps do.
"""

import dataclasses
import datetime
from collections.abc import Iterable, Sequence

from jaxpeft.errors import InputError
from jaxpeft.evaluation.tasks import natural_plan

_HEAD = (
  "You are visiting San Francisco for the day and want to meet as many friends as "
  "possible. Solve the problem by considering various different schedules and picking "
  "the best one to optimize your goals. Here are a few example tasks and solutions:"
)
_CRASH = "?"  # a step that the official script cannot read
_PHRASES = {  # how a step starts -> what is before and after its word
  "You travel": ("travel to ", " in"),
  "You wait": ("wait until ", "."),
  "You meet": ("meet ", " for"),
}


def steps(plan: Iterable[str]) -> list[tuple[str, str]]:
  """(start of the sentence, place or time or friend) of a plan, up to what is none."""
  found = []
  for sentence in plan:
    if sentence.startswith("You start"):
      continue
    start = next((x for x in _PHRASES if sentence.startswith(x)), None)
    if start is None:
      break
    before, after = _PHRASES[start]
    _, there, rest = sentence.partition(before)
    if not there:
      return [*found, (_CRASH, "")]
    # The official script splits: a second `before` ends the word, too.
    found.append((start, rest.split(before)[0].split(after)[0].strip()))
  return found


def sentences(text: str) -> list[str]:
  """The sentences of a reply, from the first "SOLUTION:" on if there is one."""
  _, there, rest = text.partition("SOLUTION:")
  return [x.strip() for x in (rest if there else text).split(".") if x.strip()]


def met(plan: Sequence[tuple[str, str]], row: dict) -> tuple[int, bool]:
  """(friends that are met, whether the official script crashes) of a plan's steps."""
  (place, start), *friends = row["constraints"]
  wanted = {
    name: (where, *_window(times), least) for name, where, times, least in friends
  }
  now, seen = _clock(start), set()
  count = 0
  for kind, word in plan:
    try:
      if kind == _CRASH:
        return count, True
      if kind == "You travel":
        now += datetime.timedelta(minutes=row["dist_matrix"][place][word])
        place = word
      elif kind == "You wait":
        if _clock(word) <= now:
          return count, False
        now = _clock(word)
      else:
        if word in seen:
          return count, False
        seen.add(word)
        where, opens, closes, least = wanted[word]
        end = now + datetime.timedelta(minutes=least)
        if place != where or now < opens or end > closes:
          return count, False
        count, now = count + 1, end
    except ValueError:  # a time that is none
      return count, False
    except (KeyError, OverflowError):
      return count, True
  return count, False


def make(options, rows: Sequence[dict] = ()) -> natural_plan.Plan:
  """The task; `eval.own_shots` asks with the row's own five examples."""
  return dataclasses.replace(_TASK, own_shots=getattr(options, "own_shots", False))


def _clock(text: str) -> datetime.datetime:
  return datetime.datetime.strptime(text, "%I:%M%p")


def _window(text: str) -> tuple[datetime.datetime, datetime.datetime]:
  opens, closes = text.split("to")[:2]
  return _clock(opens.strip()), _clock(closes.strip())


def _read(text: str) -> str:
  plan = steps(sentences(text))
  words = (f"{kind.removeprefix('You ')} {word}".strip() for kind, word in plan)
  return "; ".join(words) or natural_plan.INVALID


def _right(text: str, row: dict) -> dict[str, bool]:
  count, crashed = met(steps(sentences(text)), row)
  same = count == met(steps(row["golden_plan"]), row)[0]
  return {"strict": same and not crashed, "stops": same}


def _check(row: dict):
  if not isinstance(row["golden_plan"], list):
    raise InputError("task meeting: `golden_plan` of a row must be a list of sentences")
  numbers = [x for places in row["dist_matrix"].values() for x in places.values()]
  numbers += [least for _, _, _, least in row["constraints"][1:]]
  if not all(type(x) in (int, float) and 0 <= x < 1e5 for x in numbers):
    raise InputError("task meeting: minutes of a row must be numbers from 0 to 1e5")
  if met(steps(row["golden_plan"]), row)[1]:
    raise InputError(
      "task meeting: `golden_plan` of a row names an unknown place or friend"
    )


_TASK = natural_plan.Plan(
  "meeting", "planning meetings", _HEAD, _check, _read, _right, ("strict", "stops")
)
RULES = _TASK.RULES
