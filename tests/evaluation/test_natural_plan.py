"""NATURAL PLAN: scores equal the official scripts', also where these crash."""

import json
import time

import pytest

from jaxpeft.data import sources
from jaxpeft.errors import InputError
from jaxpeft.evaluation import tasks

FILES = {
  "trip": "np_trip_planning_mini.json",
  "meeting": "np_meeting_planning_mini.json",
  "calendar": "np_calendar_scheduling_mini.json",
}
TRIP = dict(
  prompt_0shot="You plan to visit 2 European cities for 6 days in total.",
  golden_plan="**Day 1-3:** Arriving in Oslo.\n**Day 3:** Fly from Oslo to Riga.\n"
  "**Day 3-6:** Visit Riga for 4 days.",
  cities="Oslo**Riga",
  durations="3**4",
)
HEAD = "Here is the trip plan for visiting the 2 European cities for 6 days:\n"
FLY = "**Day 3:** Fly from Oslo to Riga.\n"
LAST = "**Day 3-6:** Visit Riga for 4 days."


@pytest.mark.parametrize("name", FILES)
def test_official_scores_of_every_instance(name, data_dir):
  """Real replies with the scores that the official scripts gave them."""
  rows = sources.read(data_dir / "natural_plan" / FILES[name])
  task = tasks.make(name)
  for row in rows:
    text = row["pred_5shot_pro"]
    assert task.score(text, row)["strict"] == (row["official_score"] == 1)
    assert task.score(task.cut(text), row) == task.score(text, row)
    prompt, completion = sources.prompt_and_completion(row, "natural plan")
    assert prompt == task.prompt(row)
    assert all(task.score(completion, row).values())
    assert task.answer(completion) == task.gold(row) != "[invalid]"
  assert {row["official_score"] for row in rows} == {0, 1}


@pytest.mark.parametrize(
  ("text", "right"),
  [
    (HEAD + FLY + LAST, True),
    (FLY + LAST, True),  # the number of days is not needed
    (HEAD + FLY + LAST + "\n**Day 6-9:** more", True),  # what follows is not read
    (FLY + LAST + "\n**Day 6-9:** more", False),  # without the head, it is
    (HEAD + FLY + "Day 4: from Riga to Rome.\n" + LAST, False),  # changes a stay
    (HEAD + FLY + "Day 6: from Riga to Rome.\n" + LAST, True),  # one city more
    (HEAD + "**Day 3-6:** Day 3: from Oslo to Riga", False),  # its line ends first
    ("**Day 1-6** On Day 2, or Day 3, from Rome or from Oslo to Riga", True),
    (HEAD + FLY, False),  # no range of days
    (HEAD + LAST, False),  # no flight
    ("Day 3: from Oslo to Riga\n1-5", False),  # a stay of 3 days
    ("Day 3: from Oslo to Riga\n1-5, 3-6", False),  # the first range of a line
    ("Day 2: from Oslo to Riga\n1-6", False),
    ("Day 3: from Riga to Oslo\n1-6", False),
    ("Day 3: from Oslo to Riga\r\n1-6", True),
    (f"Day {'1' * 5000}: from Oslo to Riga\n1-6", False),  # the script crashes
    ("", False),
  ],
)
def test_every_rule_of_trips(text, right):
  assert tasks.make("trip").score(text, TRIP) == {"strict": right}


CALENDAR = dict(
  prompt_0shot="Here are a few example tasks and solutions:\n\n"
  "TASK: When? \nSOLUTION: ",
  golden_plan="Here is the proposed time: Monday, 13:30 - 14:30 ",
)


@pytest.mark.parametrize(
  ("text", "right"),
  [
    ("Monday, 13:30 - 14:30", True),
    ("on Monday, 13:30 - 14:30, or Tuesday, 9:00 - 10:00", True),
    ("Tuesday, 9:00 - 10:00, or Monday, 13:30 - 14:30", False),  # the first counts
    ("Monday 13:30 - 14:30", False),
    ("Monday, 13:30-14:30", False),
    ("monday, 13:30 - 14:30", False),
    ("Monday, 013:30 - 14:305", False),  # minutes other than 30 are 0
    ("Monday, 13:45 - 14:30", False),
    ("Monday, 13:30 - 15:30", False),
    ("xMonday, 13:30 - 14:30", False),
    ("", False),
  ],
)
def test_every_rule_of_calendars(text, right):
  task = tasks.make("calendar")
  assert task.score(text, CALENDAR) == {"strict": right}
  # "15" and "00" are the same minutes to the official script.
  whole = CALENDAR | dict(golden_plan="Monday, 13:00 - 14:00")
  assert task.score("Monday, 13:15 - 14:59", whole) == {"strict": True}


MEETING = dict(
  prompt_0shot="Plan.\n\nYour response should start with 'SOLUTION:'.",
  constraints=[
    ["Bayview", "9:00AM"],
    ["Ann", "Marina", "9:30AM to 11:00AM", 60],
    ["Bob", "Bayview", "9:00AM to 9:40AM", 15],
  ],
  dist_matrix={"Bayview": {"Marina": 10}, "Marina": {"Bayview": 10}},
  golden_plan=[
    "You start at Bayview at 9:00AM.",
    "You meet Bob for 15 minutes from 9:00AM to 9:15AM.",
    "You travel to Marina in 10 minutes and arrive at 9:25AM.",
    "You wait until 9:30AM.",
    "You meet Ann for 60 minutes from 9:30AM to 10:30AM.",
  ],
)
BOB = "You meet Bob for 1 minute. "
GO = "You travel to Marina in 99 minutes. "
WAIT = "You wait until 9:30AM. "
ANN = "You meet Ann for 1 minute. "


@pytest.mark.parametrize(
  ("text", "strict", "stops"),
  [
    (BOB + GO + WAIT + ANN, True, True),  # stated minutes do not count
    ("You meet nobody. SOLUTION: " + BOB + GO + WAIT + ANN, True, True),
    ("SOLUTION: You start anywhere at 5. " + BOB + GO + WAIT + ANN, True, True),
    (BOB + GO + WAIT + ANN + "The end. You travel home", True, True),
    (BOB + "Then. " + GO + WAIT + ANN, False, False),  # no known step
    (BOB + GO + ANN, False, False),  # Ann is not there yet
    (BOB + WAIT + ANN, False, False),  # not in her place
    (BOB + GO + "You wait until 10:01AM. " + ANN, False, False),  # not long enough
    (BOB + GO + "You wait until 10:00AM. " + ANN, True, True),  # just long enough
    (BOB + GO + WAIT + WAIT + ANN, False, False),  # waits no time at all
    (BOB + GO + "You wait until noon. " + WAIT + ANN, False, False),
    (BOB + BOB + GO + WAIT + ANN, False, False),  # twice
    (BOB + BOB, False, False),
    (BOB + GO + WAIT + ANN + "You wait until noon.", True, True),  # no crash
    (BOB + GO + WAIT + ANN + ANN, True, True),  # that is after both
    # Places where the official script crashes.
    (BOB + GO + WAIT + ANN + "You travel home.", False, True),
    (BOB + GO + WAIT + ANN + "You travel to Marina in 0 minutes.", False, True),
    (BOB + GO + WAIT + ANN + "You travel to Mars in 3 minutes.", False, True),
    (BOB + GO + WAIT + ANN + "You meet Eve for 3 minutes.", False, True),
    (BOB + GO + WAIT + ANN + "You wait.", False, True),
    (BOB + GO + WAIT + ANN + "You meet.", False, True),
    ("You travel home. " + BOB + GO + WAIT + ANN, False, False),
    ("", False, False),
  ],
)
def test_every_rule_of_meetings(text, strict, stops):
  task = tasks.make("meeting")
  assert task.score(text, MEETING) == {"strict": strict, "stops": stops}


def test_equal_answers_are_equal_plans():
  trip, meeting = tasks.make("trip"), tasks.make("meeting")
  assert trip.answer(HEAD + FLY + LAST) == trip.gold(TRIP) == "Oslo 3, Riga 4"
  assert tasks.make("calendar").gold(CALENDAR) == "Monday 13.5-14.5"
  assert meeting.answer(BOB + GO + WAIT + ANN) == meeting.gold(MEETING)
  assert meeting.answer(GO + BOB) != meeting.answer(BOB + GO)
  assert meeting.answer("I refuse.") == trip.answer("I refuse.") == "[invalid]"


def test_prompts_with_shots_and_with_the_rows_own():
  row = MEETING | dict(prompt_5shot="five")
  task = tasks.make("meeting")
  text = task.prompt(row, [row])
  assert text.endswith("TASK: Plan.\nSOLUTION:")
  assert "SOLUTION: You start at Bayview at 9:00AM. You meet" in text
  calendar = tasks.make("calendar").prompt(CALENDAR, [CALENDAR, CALENDAR])
  head, first, second, last = calendar.split("TASK: ")
  assert head.endswith("Here are a few example tasks and solutions:\n\n")
  assert first == second == f"When?\nSOLUTION: {CALENDAR['golden_plan'].strip()}\n\n"
  assert last == "When?\nSOLUTION:"
  options = tasks.DEFAULTS.__class__(**vars(tasks.DEFAULTS) | dict(own_shots=True))
  own = tasks.make("meeting", options)
  assert own.prompt(row) == "five"
  with pytest.raises(InputError, match="prompt_5shot"):
    own.prompt(MEETING)


@pytest.mark.parametrize(
  ("name", "row", "change", "message"),
  [
    ("trip", TRIP, dict(cities=3), "official file"),
    ("trip", TRIP, dict(durations="3"), "official file"),
    ("trip", TRIP, dict(cities="", durations=""), "names none"),
    ("calendar", CALENDAR, dict(golden_plan="?"), "has no time"),
    ("calendar", CALENDAR, dict(golden_plan=[3]), "list of sentences"),
    ("meeting", MEETING, dict(dist_matrix=None), "official file"),
    ("meeting", MEETING, dict(golden_plan="?"), "must be a list"),
    ("meeting", MEETING, dict(golden_plan=["You meet Eve."]), "unknown place or"),
    ("meeting", MEETING, dict(constraints=[["A", "9:00AM"], ["B"]]), "official file"),
  ],
)
def test_rows_that_are_no_problem_are_refused(name, row, change, message):
  task = tasks.make(name)
  with pytest.raises(InputError, match=message):
    task.gold(row | change)
  with pytest.raises(InputError, match="with `prompt_0shot`"):
    task.prompt(dict(question="?", answer="!"))


def test_no_reply_takes_long():
  start = time.process_time()
  for text in ("Day 1 " * 4000, "1" * 30_000, "from a to " * 3000, "x" * 30_000):
    for name, row in (("trip", TRIP), ("calendar", CALENDAR), ("meeting", MEETING)):
      assert not any(tasks.make(name).score(text, row).values())
  assert time.process_time() - start < 10


def test_a_json_file_may_be_an_object_of_rows(tmp_path):
  path = tmp_path / "trip_planning.json"
  path.write_text(json.dumps({"a": TRIP, "b": TRIP}, indent=2))
  assert sources.read(path) == [TRIP, TRIP]
  path.write_text(json.dumps({"a": TRIP, "b": TRIP | dict(golden_plan=5)}))
  with pytest.raises(InputError, match=r"row 'b'.*golden_plan"):
    sources.read(path)
  # Lines of objects, and a single one, are still rows themselves.
  row = {"meta": {"a": 1}, "prompt": "x", "completion": "y"}
  for count in (1, 2):
    path.write_text((json.dumps(row) + "\n") * count)
    assert sources.read(path) == [row] * count
