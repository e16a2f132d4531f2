"""Transcripts in which a problem is tried, each try is checked, until one is right.

A transcript is one growing text, so that what a model is asked in each of its roles is
a start of what it was trained on:

  Q: 91 of 34 12 57 45 31 22 18 40      the problem
  Try: 34+45=79/91 no                   a try up to a mark, "=", then its check
  Try: 34+57=91/91 yes                  a better one, and its check, which ends the text

Wrong tries are seen and not learned; every check is learned, and the right try is.
"""

import random
import zlib
from collections.abc import Sequence
from typing import Protocol

_BARE = 0.35  # share of transcripts without a wrong try
_TEST_SHARE = 8  # one of 8 problems is in the test split


class Problem(Protocol):
  """A kind of problem, e.g. the module `data.budget`. Its rows are dicts.

  Attributes:
    MARK: ends a try.
    MOST: wrong tries in a transcript.
    LIMITS: most tokens of a try and of a check, where a digit is a token.
  """

  @property
  def MARK(self) -> str: ...

  @property
  def MOST(self) -> int: ...

  @property
  def LIMITS(self) -> tuple[int, int]: ...

  def draw(self, rng: random.Random) -> dict:
    """A random problem."""
    ...

  def key(self, row: dict) -> tuple:
    """What decides whether a problem is in the training or the test split."""
    ...

  def head(self, row: dict) -> str:
    """The text of a problem, up to its first try; it ends a line."""
    ...

  def gold(self, row: dict) -> str:
    """The right try; "" if there is none."""
    ...

  def value(self, answer: str) -> str | None:
    """What is voted on: the same for tries that say the same; None for no answer."""
    ...

  def right(self, row: dict, answer: str) -> bool:
    """Whether a try solves the problem."""
    ...

  def check(self, row: dict, answer: str) -> str:
    """The analysis that a try should get, which ends in "yes" or "no"."""
    ...

  def wrong(self, rng: random.Random, row: dict) -> str:
    """A try that does not solve the problem."""
    ...


def problems(kind: Problem, split: str, count: int, seed: int) -> list[dict]:
  """Problems of a kind.

  Args:
    split: "train" or "test"; a hash of its key decides where a problem is, so that the
      two share none, whatever the seeds.
    count: number of problems.
    seed: of the random choices.
  """
  rng, out = random.Random(f"{split}-{seed}"), []
  while len(out) < count:
    row = kind.draw(rng)
    if _split(kind.key(row)) == split:
      out.append(row)
  return out


def rows(kind: Problem, split: str, count: int, seed: int) -> list[dict]:
  """`told` problems of a split; the arguments are those of `problems`."""
  return told(kind, problems(kind, split, count, seed), seed)


def told(kind: Problem, found: list[dict], seed: int, own=None) -> list[dict]:
  """Problems with a transcript each, in the field "segments".

  Args:
    found: the problems.
    seed: of the wrong tries.
    own: for each problem, tries of a model; up to half of the wrong tries are of them.
      None: all are drawn by `Problem.wrong`.
  """
  rng, own = random.Random(f"tries-{seed}"), own or [()] * len(found)
  return [
    row | dict(segments=transcript(kind, row, _some(kind, rng, row, mine)))
    for row, mine in zip(found, own, strict=True)
  ]


def transcript(kind: Problem, row: dict, wrong: Sequence[str] = ()) -> list[dict]:
  """The segments of a text with these wrong tries before the right one."""
  out = [(f"{kind.head(row)}Try:", False)]
  for answer in wrong:
    check = f"{kind.check(row, answer)}\n"
    out += [(f" {answer}{kind.MARK}", False), (check, True), ("Try:", False)]
  answer = kind.gold(row)
  out += [(f" {answer}{kind.MARK}", True), (kind.check(row, answer), True)]
  return [dict(text=text, learn=learn) for text, learn in out]


def _some(kind: Problem, rng: random.Random, row: dict, own) -> list[str]:
  """Different wrong tries, in any order."""
  count = 0 if rng.random() < _BARE else rng.randint(1, kind.MOST)
  drawn = set()
  for _ in range(9 * count):  # a problem may not have so many
    if len(drawn) < count:
      drawn.add(kind.wrong(rng, row))
  mine = [x for x in dict.fromkeys(own) if not kind.right(row, x)]
  mine = rng.sample(mine, min(len(mine), (count + 1) // 2))
  rest = sorted(drawn - set(mine))
  rest = rng.sample(rest, min(len(rest), count - len(mine)))
  return rng.sample([*mine, *rest], len(mine) + len(rest))


def _split(key: tuple) -> str:
  return "test" if zlib.crc32(repr(key).encode()) % _TEST_SHARE == 0 else "train"
