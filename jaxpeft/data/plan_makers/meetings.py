"""Friends in San Francisco, with a plan that meets as many as is possible.

The places are real; their distances are made up for each problem.
"""

import math
import random

SIZES = tuple(range(1, 11))  # friends
_PLACES = (
  "Alamo Square", "Bayview", "Chinatown", "Embarcadero", "Financial District",
  "Fisherman's Wharf", "Golden Gate Park", "Haight-Ashbury", "Marina District",
  "Mission District", "Nob Hill", "North Beach", "Pacific Heights", "Presidio",
  "Richmond District", "Russian Hill", "Sunset District", "The Castro", "Union Square",
)  # fmt: skip
_NAMES = (
  "Amanda Andrew Anthony Ashley Barbara Betty Brian Carol Charles Daniel David Deborah "
  "Elizabeth Emily George Helen James Jason Jeffrey Jessica John Joseph Joshua Karen "
  "Kenneth Kevin Kimberly Laura Linda Lisa Margaret Mark Mary Matthew Melissa Nancy "
  "Patricia Paul Rebecca Richard Robert Ronald Sandra Sarah Stephanie Steven Thomas "
  "Timothy William"
).split()
_START = 9 * 60  # minutes since midnight


def make(rng: random.Random, size: int) -> dict:
  """A problem of `size` friends."""
  start, *places = rng.sample(_PLACES, size + 1)
  spot = {place: (rng.uniform(0, 22), rng.uniform(0, 22)) for place in [start, *places]}
  away = {
    a: {
      b: max(3, round(math.dist(spot[a], spot[b]) + rng.choice((0, 0, 1, 2))))
      for b in spot
      if b != a
    }
    for a in spot
  }
  friends = {}
  for name, place in zip(rng.sample(_NAMES, size), places, strict=True):
    least, span = 15 * rng.randint(1, 8), 15 * round(rng.lognormvariate(2.7, 0.6))
    span = min(max(span, least), 885)
    opens = 15 * rng.randint(7 * 4, (22 * 60 - span) // 15)
    friends[name] = (place, opens, opens + span, least)
  order = best(start, away, friends)
  lines = [f"{a} to {b}: {k}." for a, more in away.items() for b, k in more.items()]
  wishes = [
    f"{name} will be at {place} from {_clock(a)} to {_clock(b)}. You'd like to meet "
    f"{name} for a minimum of {least} minutes."
    for name, (place, a, b, least) in friends.items()
  ]
  return dict(
    num_people=size,
    constraints=[
      [start, _clock(_START)],
      *(
        [name, place, f"{_clock(a)} to {_clock(b)}", least]
        for name, (place, a, b, least) in friends.items()
      ),
    ],
    dist_matrix=away,
    prompt_0shot=(
      "You are visiting San Francisco for the day and want to meet as many friends as "
      "possible. Solve the problem by considering various different schedules and "
      "picking the best one to optimize your goals.\n\nTravel distances (in minutes):\n"
      + "\n".join(lines)
      + f"\n\nCONSTRAINTS: You arrive at {start} at {_clock(_START)}. "
      f"{' '.join(wishes)}"
      "\n\nYour response should start with 'SOLUTION:'."
    ),
    golden_plan=_plan(start, away, friends, order),
  )


def best(
  start: str,
  away: dict[str, dict[str, int]],
  friends: dict[str, tuple[str, int, int, int]],
) -> list[str]:
  """An order of the most friends that can be met, by trying all orders.

  Args:
    start: where one is at 9:00.
    away: minutes from one place to another.
    friends: name -> (place, first minute, last minute, minutes of the meeting).
  """
  found: list[str] = []
  seen: dict[tuple[frozenset[str], str], int] = {}  # whom, last -> earliest end

  def go(order: list[str], place: str, now: int):
    nonlocal found
    if len(order) > len(found):
      found = order
    for name, (where, opens, closes, least) in friends.items():
      if name in order:
        continue
      end = max(now + away[place].get(where, 0), opens) + least
      state = (frozenset([*order, name]), name)
      if end <= closes and end < seen.get(state, 1 << 30):
        seen[state] = end
        go([*order, name], where, end)

  go([], start, _START)
  return found


def _plan(start: str, away, friends, order: list[str]) -> list[str]:
  lines, place, now = [f"You start at {start} at {_clock(_START)}."], start, _START
  for name in order:
    where, opens, _, least = friends[name]
    minutes = away[place][where]
    now, place = now + minutes, where
    lines.append(
      f"You travel to {where} in {minutes} minutes and arrive at {_clock(now)}."
    )
    if now < opens:
      now = opens
      lines.append(f"You wait until {_clock(now)}.")
    end = now + least
    lines.append(
      f"You meet {name} for {least} minutes from {_clock(now)} to {_clock(end)}."
    )
    now = end
  return lines


def _clock(minute: int) -> str:
  hour = minute // 60
  return f"{(hour - 1) % 12 + 1}:{minute % 60:02}{'AM' if hour < 12 else 'PM'}"
