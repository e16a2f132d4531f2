"""Trips through European cities (NATURAL PLAN), scored as by the official script.

A plan is right if its cities and stays are the golden ones, in order; what follows is
ignored. Stays follow from the days of the flights. Neither direct flights nor
the days of events are checked: 95 % of the problems have one solution only.
"""

import dataclasses
import re
from collections.abc import Sequence

from jaxpeft.errors import InputError
from jaxpeft.evaluation.tasks import natural_plan

# The official patterns; the first look-behind and the anchor only save time.
_VISIT = re.compile(r"(?<!\d)\d+-\d+")
_FLIGHT = re.compile(r".*Day (\d+).*from (\w+) to (\w+)")  # of a whole line
_DAYS = re.compile(r"European cities for (\d+) days")
_HEAD = (
  "You are an expert at planning trips. You are given a few constraints regarding the "
  "cities to visit and the durations of staying at each city. You are also given the "
  "flight information between the cities. Here are a few example tasks and solutions:"
)


def parse(text: str) -> list[tuple[str, int]]:
  """(city, days of the stay) of the plan in a text; [] if there is none.

  Raises:
    ValueError: a number has over 4300 digits; the official script crashes there, too.
  """
  days, flights, total = [], [], None
  for line in text.split("\n"):
    if found := _DAYS.search(line):
      total = int(found[1])
    if found := _VISIT.search(line):
      days.append(int(found[0].split("-")[1]))
      if days[-1] == total:
        break  # what follows are other plans
    if found := _FLIGHT.match(line):
      flights.append((int(found[1]), found[2], found[3]))
  if not days or not flights:
    return []
  cities = [flights[0][1], *(to for _, _, to in flights)]
  ends = [1, *(day for day, _, _ in flights), days[-1]]
  return [(city, ends[i + 1] - ends[i] + 1) for i, city in enumerate(cities)]


def golden(row: dict) -> list[tuple[str, int]]:
  """(city, days) of the golden plan."""
  cities, days = (row[x].split("**") for x in ("cities", "durations"))
  pairs = zip(filter(None, cities), filter(None, days), strict=True)
  return [(city, int(count)) for city, count in pairs]


def make(options, rows: Sequence[dict] = ()) -> natural_plan.Plan:
  """The task; `eval.own_shots` asks with the row's own five examples."""
  return dataclasses.replace(_TASK, own_shots=getattr(options, "own_shots", False))


def _read(text: str) -> str:
  try:
    plan = parse(text)
  except ValueError:
    plan = []
  return ", ".join(f"{city} {days}" for city, days in plan) or natural_plan.INVALID


def _right(text: str, row: dict) -> dict[str, bool]:
  gold = golden(row)
  try:
    return {"strict": parse(text)[: len(gold)] == gold}
  except ValueError:
    return {"strict": False}


def _check(row: dict):
  if not golden(row):
    raise InputError("task trip: `cities` of a row names none")


_TASK = natural_plan.Plan("trip", "planning trips", _HEAD, _check, _read, _right)
RULES = _TASK.RULES
