"""Problems that are made: their golden plans are right by what their texts say."""

import itertools
import re

import pytest

from jaxpeft.data import plan_makers, sources
from jaxpeft.evaluation import tasks
from jaxpeft.evaluation.tasks import meeting

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")


@pytest.mark.parametrize("name", plan_makers.MAKERS)
def test_golden_plans_are_right_and_seeds_give_the_same(name):
  task, made = tasks.make(name), plan_makers.rows(name, "test", 30)
  for row in made:
    prompt, completion = sources.prompt_and_completion(row, "natural plan")
    assert prompt == task.prompt(row)
    assert all(task.score(completion, row).values())
  assert made == plan_makers.rows(name, "test", 30)
  assert made != plan_makers.rows(name, "test", 30, seed=1)
  train = {row["prompt_0shot"] for row in plan_makers.rows(name, "train", 60)}
  test = {row["prompt_0shot"] for row in plan_makers.rows(name, "test", 60)}
  assert not train & test


def test_only_one_order_of_the_cities_fits_the_text_of_a_trip():
  some = plan_makers.rows("trip", "train", 40)
  for row in (row for row in some if int(row["num_cities"]) <= 6):
    text = row["prompt_0shot"]
    stays = {}
    for pattern in (r"stay in (\w+) for (\d+) days", r"visit (\w+) for (\d+) days"):
      stays |= dict(re.findall(pattern, text))
    stays |= {
      city: days for days, city in re.findall(r"spend (\d+) days in (\w+)", text)
    }
    events = []
    for city, a, b in re.findall(
      r"(?:in|at) (\w+) between day (\d+) and day (\d+)", text
    ):
      events.append((city, int(a), int(b)))
    for a, b, city in re.findall(
      r"(?:From|During) day (\d+) (?:to|and) day (\d+), [^.]* in (\w+)\.", text
    ):
      events.append((city, int(a), int(b)))
    flights = set()
    lines = text.split("direct flights:\n")[1].split(".\n")[0].split(", ")
    for line in lines:
      words = line.split()
      flights.add((words[-3], words[-1]))
      flights |= {(words[-1], words[-3])} if words[0] != "from" else set()
    fits = []
    for order in itertools.permutations(stays):
      ends = list(itertools.accumulate((int(stays[c]) - 1 for c in order), initial=1))
      during = dict(zip(order, itertools.pairwise(ends), strict=True))
      good = all(pair in flights for pair in itertools.pairwise(order))
      if good and all(during[c][0] <= a and b <= during[c][1] for c, a, b in events):
        fits.append("**".join(order))
    assert fits == [row["cities"]]
    assert f"for {ends[-1]} days in total" in text
    assert row["durations"] == "**".join(stays[c] for c in row["cities"].split("**"))


def test_a_calendar_has_one_free_time_or_wants_the_first():
  for row in plan_makers.rows("calendar", "train", 60):
    text = row["prompt_0shot"].split("TASK: ")[1]
    days, length = DAYS[: int(row["num_days"])], int(2 * float(row["duration"]))
    free = {(day, slot) for day in days for slot in range(18, 34)}
    lines = text.split("\n\n")[1].split("\n")[1:]
    for line in lines:
      day = None
      for word, a, b in re.findall(r"(\w+day) during|(\d+:\d+) to (\d+:\d+)", line):
        day = word or day
        if a:
          free -= {(day, slot) for slot in range(_slot(a), _slot(b))}
    wish = re.search(r"(?:meetings|not meet|want to meet) on (.*?) Find a time", text)
    if wish:
      for day, side, time in re.findall(
        r"(\w+day)(?: (before|after) (\d+:\d+))?", wish[1]
      ):
        bad = range(18, 34) if not side else range(18, _slot(time))
        bad = range(_slot(time), 34) if side == "after" else bad
        free -= {(day, slot) for slot in bad}
    starts = [
      (day, slot)
      for day in days
      for slot in range(18, 34)
      if {(day, slot + i) for i in range(length)} <= free
    ]
    assert len(lines) == int(row["num_people"])
    assert len(starts) == 1 or "earlist availability" in text
    day, slot = starts[0]
    assert (
      tasks.make("calendar").gold(row) == f"{day} {slot / 2:g}-{(slot + length) / 2:g}"
    )


def test_no_order_of_friends_meets_more():
  for row in plan_makers.rows("meeting", "train", 26):
    if row["num_people"] > 5:
      continue
    (start, _), *friends = row["constraints"]
    most = 0
    for order in itertools.permutations(friends):
      place, now, count = start, 9 * 60, 0
      for _, where, times, least in order:
        opens, closes = map(_minute, times.split(" to "))
        now = max(now + row["dist_matrix"][place][where], opens) + least
        if now > closes:
          break
        place, count = where, count + 1
      most = max(most, count)
    assert meeting.met(meeting.steps(row["golden_plan"]), row) == (most, False)
    for name, where, times, least in friends:
      text = row["prompt_0shot"]
      assert f"{name} will be at {where} from {times}. You'd like to" in text
      assert f"meet {name} for a minimum of {least} minutes." in text


def test_they_are_embedded_data():
  rows = sources.embedded("calendar/test")
  assert len(rows) == 1000
  assert rows[:5] == plan_makers.rows("calendar", "test", 5)


def _slot(time: str) -> int:
  hours, minutes = time.split(":")
  return 2 * int(hours) + (minutes == "30")


def _minute(time: str) -> int:
  hours, minutes = time[:-2].split(":")
  return 60 * (int(hours) % 12 + 12 * (time[-2:] == "PM")) + int(minutes)
