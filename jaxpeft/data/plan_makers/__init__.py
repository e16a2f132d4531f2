"""Makers of problems in the wording of NATURAL PLAN, each with a golden plan.

They have the fields of the official files, and no data of theirs. The same seed gives
the same problems.
"""

import random

from jaxpeft.data.plan_makers import calendars, meetings, trips

MAKERS = {"trip": trips, "meeting": meetings, "calendar": calendars}
_SPLITS = {"train": 0, "test": 1}


def rows(name: str, split: str, count: int, seed: int = 0) -> list[dict]:
  """Problems of all sizes in turn.

  Args:
    name: in `MAKERS`.
    split: "train" or "test": no problem of one is in the other.
    count: of problems.
    seed: other seeds give other problems.
  """
  maker, found = MAKERS[name], []
  for i in range(count):
    rng = random.Random(f"{name} {split} {seed} {i}")
    # A problem's split is the parity of its text, so that none is in both.
    while True:
      row = maker.make(rng, maker.SIZES[i % len(maker.SIZES)])
      if sum(row["prompt_0shot"].encode()) % 2 == _SPLITS[split]:
        break
    found.append(row)
  return found
