"""Which prompts are decoded together: what memory holds, in few compiled programs."""

import math
from collections.abc import Callable
from typing import NamedTuple

_BUCKETS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # then multiples of 512
_COMPILATION = 8192  # tokens of padding that cost about as much as one more program


class Batch(NamedTuple):
  """Prompts that are decoded at once."""

  rows: list[int]  # indices of the prompts
  size: int  # rows of the arrays; those without a prompt only fill them up
  slots: int  # tokens to which the prompts are padded


def bucket(length: int) -> int:
  """The length to which prompts are padded: the least of `_BUCKETS` that fits."""
  return next((b for b in _BUCKETS if b >= length), -(-length // 512) * 512)


def plan(
  lengths: list[int], limit: int | None, budget: int, row: Callable[[int], int], ways=1
) -> list[Batch]:
  """Batches of prompts, short ones first.

  Prompts of about the same length share a program, and so do a few shorter ones, since
  to pad them costs less than to compile. The batches of a program are equal in size, so
  that the last one is not filled up with rows that cost as much as real ones.

  Args:
    lengths: tokens of each prompt.
    limit: most rows of a batch; None is no limit.
    budget: bytes that a batch may need. A single row is decoded even if it needs more.
    row: bytes that one row needs, from the tokens to which it is padded.
    ways: number of pieces into which a mesh splits the rows.
  """
  order = sorted(range(len(lengths)), key=lengths.__getitem__)
  slots_of = [bucket(lengths[i]) for i in order]
  out = []
  while order:
    slots, first = slots_of[-1], slots_of.index(slots_of[-1])
    while first:  # all prompts of the next shorter length, or none of them
      start = slots_of.index(slots_of[first - 1])
      if sum(slots - n for n in slots_of[start:]) > _COMPILATION:
        break
      first = start
    group, order, slots_of = order[first:], order[:first], slots_of[:first]
    most = max(1, budget // max(1, row(slots)))
    most = min(most, limit or len(group))
    size = math.ceil(len(group) / math.ceil(len(group) / most))
    if size > ways:  # the pieces of a mesh are equal, too
      size = min(most, math.ceil(size / ways) * ways)
    starts = range(0, len(group), size)
    out[:0] = [Batch(group[i : i + size], size, slots) for i in starts]
  return out
