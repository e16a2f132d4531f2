"""Generates the embedded task `budget`, whose check is far easier than its solution.

Which two of eight prices make exactly the budget? One pair does. To find it takes a
search, to check it takes one addition. A transcript is one growing text, so that what
the model is asked in each of its roles is a start of what it was trained on:

  Q: 91 of 34 12 57 45 31 22 18 40      the problem
  Try: 34+45=79/91 no                   a try up to "=", then its check
  Try: 34+57=91/91 yes                  a better one, and its check, which ends the text

Wrong tries are seen and not learned; every check is learned, and the right try is. A
hash of its prices and its budget decides whether a problem is in the training or the
test split.
"""

import itertools
import random
import re
import zlib

PRICES, LOW, HIGH = 8, 10, 49  # how many there are, and from where to where
MARK = "="  # ends a try
MOST = 8  # wrong tries in a transcript
_BARE = 0.35  # share of transcripts without a wrong try
_NEAR = 0.7  # share of wrong tries whose sum is nearly right
_TEST_SHARE = 8  # one of 8 problems is in the test split
_PAIR = re.compile(r"(\d{1,3})\+(\d{1,3})", re.ASCII)


def problems(split: str, count: int, seed: int) -> list[dict]:
  """Problems {"prices", "total"} of a split.

  Args:
    split: "train" or "test"; the two share no problem, whatever the seeds.
    count: number of problems.
    seed: of the random choices.
  """
  rng, out = random.Random(f"budget-{split}-{seed}"), []
  while len(out) < count:
    row = _draw(rng)
    if _split(row) == split:
      out.append(row)
  return out


def rows(split: str, count: int, seed: int, own=None) -> list[dict]:
  """Problems with a transcript each: {"prices", "total", "segments"}.

  Args:
    split, count, seed: as of `problems`.
    own: for each problem, wrong tries of a model; half of the wrong tries are theirs,
      as far as they go. None: all are drawn from the prices.
  """
  rng = random.Random(f"tries-{split}-{seed}")
  found = problems(split, count, seed)
  return [
    row | dict(segments=transcript(row, _tries(rng, row, own[i] if own else ())))
    for i, row in enumerate(found)
  ]


def head(row: dict) -> str:
  """The text of a problem, up to its first try."""
  return f"Q: {row['total']} of {' '.join(map(str, row['prices']))}\n"


def transcript(row: dict, wrong: list[str]) -> list[dict]:
  """The segments of a text with these wrong tries before the right one."""
  out = [(f"{head(row)}Try:", False)]
  for answer in wrong:
    out += [
      (f" {answer}{MARK}", False),
      (f"{check(row, answer)}\n", True),
      ("Try:", False),
    ]
  answer = gold(row)
  out += [(f" {answer}{MARK}", True), (check(row, answer), True)]
  return [dict(text=text, learn=learn) for text, learn in out]


def gold(row: dict) -> str:
  """The right pair, in the order of the prices; "" if no pair makes the budget."""
  pairs = itertools.combinations(row["prices"], 2)
  found = (f"{a}+{b}" for a, b in pairs if a != b and a + b == row["total"])
  return next(found, "")


def pair(answer: str) -> tuple[int, int] | None:
  """The two numbers of a try, the smaller one first; None if it is no pair."""
  found = _PAIR.fullmatch(answer.strip())
  if not found:
    return None
  a, b = sorted(map(int, found.groups()))
  return a, b


def right(row: dict, answer: str) -> bool:
  """Whether a try solves the problem: two different prices that make the budget."""
  found = pair(answer)
  if found is None:
    return False
  a, b = found
  return a != b and {a, b} <= set(row["prices"]) and a + b == row["total"]


def check(row: dict, answer: str) -> str:
  """The analysis that a try should get: its sum, the budget, and the verdict.

  A number that is no price is named instead of the sum: "47? no".
  """
  found = _PAIR.fullmatch(answer.strip())
  if not found:
    return "? no"
  a, b = found.groups()
  for number in (a, b):
    if number not in map(str, row["prices"]):
      return f"{number}? no"
  verdict = "yes" if right(row, answer) else "no"
  return f"{int(a) + int(b)}/{row['total']} {verdict}"


def wrong(rng: random.Random, row: dict) -> str:
  """A pair of prices that does not make the budget; most are nearly right."""
  total = row["total"]
  pairs = [x for x in itertools.combinations(row["prices"], 2) if sum(x) != total]
  near = [x for x in pairs if (sum(x) - total) % 10 == 0 or abs(sum(x) - total) <= 5]
  a, b = rng.choice(near if near and rng.random() < _NEAR else pairs)
  return f"{a}+{b}"


def _tries(rng, row: dict, own) -> list[str]:
  """Different wrong tries, in any order."""
  count = 0 if rng.random() < _BARE else rng.randint(1, MOST)
  drawn = {wrong(rng, row) for _ in range(count)}
  mine = [x for x in dict.fromkeys(own) if not right(row, x)]
  mine = rng.sample(mine, min(len(mine), (count + 1) // 2))
  rest = sorted(drawn - set(mine))
  rest = rng.sample(rest, min(len(rest), count - len(mine)))
  return rng.sample([*mine, *rest], len(mine) + len(rest))


def _draw(rng) -> dict:
  """A problem with one solution."""
  while True:
    prices = rng.sample(range(LOW, HIGH + 1), PRICES)
    total = sum(rng.sample(prices, 2))
    sums = [sum(x) for x in itertools.combinations(prices, 2)]
    if sums.count(total) == 1:
      return dict(prices=prices, total=total)


def _split(row: dict) -> str:
  key = sorted(row["prices"]), row["total"]
  return "test" if zlib.crc32(repr(key).encode()) % _TEST_SHARE == 0 else "train"
