"""Trips through cities with direct flights, each with exactly one solution."""

import itertools
import random
from collections.abc import Iterator, Sequence

SIZES = tuple(range(3, 11))  # cities
_CITIES = (
  "Amsterdam Athens Barcelona Berlin Brussels Bucharest Budapest Copenhagen Dublin "
  "Dubrovnik Edinburgh Florence Frankfurt Geneva Hamburg Helsinki Istanbul Krakow "
  "Lisbon London Lyon Madrid Manchester Milan Munich Naples Nice Oslo Paris Porto "
  "Prague Reykjavik Riga Rome Salzburg Seville Sofia Split Stockholm Stuttgart Tallinn "
  "Valencia Venice Vienna Vilnius Warsaw Zagreb Zurich"
).split()
_STAYS = (
  "You plan to stay in {c} for {k} days.",
  "You want to spend {k} days in {c}.",
  "You would like to visit {c} for {k} days.",
)
_EVENTS = (
  "You are going to attend a wedding in {c} between day {a} and day {b}.",
  "You plan to visit relatives in {c} between day {a} and day {b}.",
  "You have to attend a workshop in {c} between day {a} and day {b}.",
  "You want to meet a friend in {c} between day {a} and day {b}.",
  "You would like to meet your friends at {c} between day {a} and day {b} to tour "
  "together.",
  "During day {a} and day {b}, you have to attend a conference in {c}.",
  "From day {a} to day {b}, there is a annual show you want to attend in {c}.",
)


def make(rng: random.Random, size: int) -> dict:
  """A problem of `size` cities."""
  cities = rng.sample(_CITIES, size)
  stays = {city: rng.choice((2, 3, 3, 4, 4, 5)) for city in cities}
  flights: set[tuple[str, str]] = set(itertools.pairwise(cities))
  pairs = [(a, b) for i, a in enumerate(cities) for b in cities[i + 1 :]]
  for a, b in rng.sample(pairs, len(pairs)):
    if 3 * len({frozenset(x) for x in flights}) < 2 * len(pairs):
      flights.add((a, b))
  one_way = {x for x in flights if rng.random() < 0.04}
  flights |= {(b, a) for a, b in flights - one_way}
  first, windows = 1, {}
  for city in cities:
    windows[city] = (first, first + stays[city] - 1)
    first = windows[city][1]
  total = windows[cities[-1]][1]
  # Events are added until only one plan fits them.
  events, left = {}, rng.sample(cities, size)
  wanted = (size + 1) // 2 - (size > 5)
  while len(events) < wanted or len(_first(solutions(stays, flights, events), 2)) > 1:
    city = left.pop()
    events[city] = windows[city]
  return dict(
    num_cities=str(size),
    cities="**".join(cities),
    durations="**".join(str(stays[city]) for city in cities),
    prompt_0shot=_prompt(rng, stays, flights, one_way, events, total),
    golden_plan=_plan(cities, windows, stays, total),
  )


def solutions(
  stays: dict[str, int],
  flights: set[tuple[str, str]],
  events: dict[str, tuple[int, int]],
) -> Iterator[list[str]]:
  """All orders of the cities with direct flights and every event during its stay.

  Args:
    stays: city -> days.
    flights: (from, to).
    events: city -> (first day, last day), as long as the stay.
  """

  def go(path: list[str], day: int) -> Iterator[list[str]]:
    if len(path) == len(stays):
      yield path
      return
    for city, days in stays.items():
      if city in path or (path and (path[-1], city) not in flights):
        continue
      if events.get(city, (day, day + days - 1)) == (day, day + days - 1):
        yield from go([*path, city], day + days - 1)

  return go([], 1)


def _first(found: Iterator, count: int) -> list:
  return [x for x, _ in zip(found, range(count), strict=False)]


def _prompt(rng, stays, flights, one_way, events, total) -> str:
  sentences = []
  for city in rng.sample(list(stays), len(stays)):
    sentences.append(rng.choice(_STAYS).format(c=city, k=stays[city]))
    if city in events:
      a, b = events[city]
      sentences.append(rng.choice(_EVENTS).format(c=city, a=a, b=b))
  both = {tuple(sorted(x)) for x in flights - one_way}
  texts = [f"from {a} to {b}" for a, b in sorted(one_way)]
  for pair in sorted(both):
    texts.append("{} and {}".format(*rng.sample(pair, 2)))
  rng.shuffle(texts)
  return (
    f"You plan to visit {len(stays)} European cities for {total} days in total. You "
    f"only take direct flights to commute between cities. {' '.join(sentences)}\n\n"
    f"Here are the cities that have direct flights:\n{', '.join(texts)}.\n\n"
    f"Find a trip plan of visiting the cities for {total} days by taking direct "
    "flights to commute between them."
  )


def _plan(cities: Sequence[str], windows, stays, total: int) -> str:
  lines = []
  for i, city in enumerate(cities):
    a, b = windows[city]
    if i:
      lines.append(f"**Day {a}:** Fly from {cities[i - 1]} to {city}.")
    verb = "Visit" if i else f"Arriving in {city} and visit"
    lines.append(f"**Day {a}-{b}:** {verb} {city} for {stays[city]} days.")
  head = f"Here is the trip plan for visiting the {len(cities)} European cities for "
  return f"{head}{total} days:\n\n" + "\n".join(lines)
