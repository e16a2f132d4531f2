"""A time for a meeting: the only free one, or the first if that is asked for."""

import random

# (people, days)
SIZES = ((3, 1), (4, 1), (5, 1), (6, 1), (7, 1), (2, 1), (2, 2), (2, 3), (2, 4), (2, 5))
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
_NAMES = (
  "Adam Alice Amy Andrew Anna Brian Carol David Diana Donna Edward Emily Eric Frank "
  "Grace Harold Helen Jack James Janet Jason Joan John Julia Karen Kevin Larry Laura "
  "Linda Lisa Maria Mark Mary Nancy Olivia Paul Peter Rachel Ralph Rose Ruth Sarah "
  "Scott Sean Susan Terry Theresa Thomas Walter Wayne"
).split()
_BUSY = ("has blocked their calendar", "is busy", "has meetings")
_FREE = (
  "{} is free the entire {}.",
  "{}has no meetings the whole {}.",  # as the official files have it
  "{}'s calendar is wide open the entire {}.",
)
_AVOID = (
  "would like to avoid more meetings",
  "do not want to meet",
  "can not meet",
  "would rather not meet",
)
_EARLIEST = (
  "The group would like to meet at their earlist availability.",
  "You would like to schedule the meeting at their earlist availability.",
)
_SLOTS = 16  # half hours from 9:00 to 17:00


def make(rng: random.Random, size: tuple[int, int]) -> dict:
  """A problem of (people, days)."""
  people, count = size
  names, days, length = rng.sample(_NAMES, people), _DAYS[:count], rng.choice((1, 2))
  while True:
    # A high share of busy half hours leaves few free ones in common.
    share = 1 - rng.uniform(0.03, 0.5) ** (1 / people)
    busy = {name: [_some(rng, share) for _ in days] for name in names}
    if rng.random() < 0.4:
      busy[rng.choice(names)] = [set() for _ in days]
    avoided, wish = (
      _wish(rng, days) if rng.random() < 0.4 else ([set() for _ in days], "")
    )
    free = slots([*busy.values(), avoided], length)
    if free and (len(free) == 1 or not wish):
      break
  if len(free) > 1:
    wish = f"{rng.choice(_EARLIEST)}\n"
  elif wish:
    wish = f"{rng.choice(names)} {wish} "
  day, start = free[0]
  plural = "s" if count > 1 else ""
  lines = [_line(rng, name, busy[name], days) for name in names]
  work = " or ".join([", ".join(days[:-1]), days[-1]]) if count > 1 else days[0]
  work = f"either {work}" if count > 1 else work
  prompt = (
    "You are an expert at scheduling meetings. You are given a few constraints on the "
    "existing schedule of each participant, the meeting duration, and possibly some "
    "preferences on the meeting time. Note there exists a solution that works with "
    "existing schedule of every participant. Here are a few example tasks and "
    "solutions:\n\nTASK: You need to schedule a meeting for "
    f"{', '.join(names[:-1])} and {names[-1]} for "
    f"{('half an', 'one')[length - 1]} hour between the work hours of "
    f"9:00 to 17:00 on {work}. \n\nHere are the existing "
    f"schedules for everyone during the day{plural}: \n" + "\n".join(lines) + "\n\n"
    f"{wish}Find a time that works for everyone's schedule and constraints. \n"
    "SOLUTION: "
  )
  time = f"{days[day]}, {_clock(start)} - {_clock(start + length)} "
  return dict(
    num_people=str(people),
    num_days=str(count),
    duration=("0.5", "1")[length - 1],
    prompt_0shot=prompt,
    golden_plan=f"Here is the proposed time: {time}",
  )


def slots(busy: list[list[set[int]]], length: int) -> list[tuple[int, int]]:
  """(day, half hour) of all times at which nobody is busy.

  Args:
    busy: of each person, on each day, the half hours from 0 to 15.
    length: half hours of the meeting.
  """
  return [
    (day, start)
    for day in range(len(busy[0]))
    for start in range(_SLOTS - length + 1)
    if not any(person[day] & {start, start + length - 1} for person in busy)
  ]


def _some(rng, share: float) -> set[int]:
  return {slot for slot in range(_SLOTS) if rng.random() < share}


def _wish(rng, days) -> tuple[list[set[int]], str]:
  """(what somebody avoids on each day, the words for that)."""
  avoided, words = [set() for _ in days], []
  for day in sorted(rng.sample(range(len(days)), rng.randint(1, len(days)))):
    hour = rng.randrange(1, _SLOTS)
    kind = rng.choice(("", "before", "after")) if len(days) > 1 else "before"
    kept = dict(before=range(hour, _SLOTS), after=range(hour)).get(kind, range(0))
    avoided[day] = set(range(_SLOTS)) - set(kept)
    words.append(f"{days[day]}{f' {kind} {_clock(hour)}' if kind else ''}.")
  return avoided, f"{rng.choice(_AVOID)} on {' '.join(words)}"


def _line(rng, name: str, busy: list[set[int]], days) -> str:
  if not any(busy):
    return rng.choice(_FREE).format(name, "week" if len(days) > 1 else "day")
  times = []
  for day, taken in zip(days, busy, strict=True):
    starts = [x for x in sorted(taken) if x - 1 not in taken]
    ends = [x + 1 for x in sorted(taken) if x + 1 not in taken]
    spans = [f"{_clock(a)} to {_clock(b)}" for a, b in zip(starts, ends, strict=True)]
    times += [f"{day} during {', '.join(spans)}"] if spans else []
  return f"{name} {rng.choice(_BUSY)} on {', '.join(times)}; "


def _clock(slot: int) -> str:
  return f"{9 + slot // 2}:{'30' if slot % 2 else '00'}"
