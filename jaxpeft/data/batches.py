"""Packs examples into rows and batches, as a pure function of (examples, seed, step).

A row holds one or more examples one after another. Each is a segment that attends only
to itself, with positions from 0. To resume at a step, no state is needed.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from jaxpeft.data import order
from jaxpeft.data.examples import Example, Examples
from jaxpeft.data.lazy import Lazy
from jaxpeft.errors import InputError

_PART = 2**20  # values that are sorted at once


class Rows(Lazy):
  """A sequence of rows, each a list of examples; only numbers of examples are stored.

  Attributes:
    examples: a sequence of examples.
    items: int[examples]: numbers of examples, row after row.
    starts: int[rows + 1]: where each row starts in `items`.
  """

  def __init__(self, examples: Sequence[Example], items, starts):
    self.examples, self.items, self.starts = examples, items, starts

  def __len__(self) -> int:
    return len(self.starts) - 1

  def item(self, at: int):
    some = self.items[self.starts[at] : self.starts[at + 1]]
    return [self.examples[i] for i in some]


def pack(examples: Sequence[Example], max_tokens: int) -> Rows:
  """Rows of at most `max_tokens` tokens each, made of whole examples.

  The result depends only on the lengths and the order of the examples.

  Source: best-fit decreasing bin packing, which asymptotically needs at most 11/9 of
  the optimal number of rows (Johnson et al., 1974).
  """
  lengths = lengths_of(examples)
  order = _sorted(
    lengths.max(initial=0) - lengths, np.arange(len(lengths), dtype=np.int32)
  )[0]
  row_of = _best_fit(lengths[order], max_tokens)
  del lengths
  return Rows(examples, *_sorted(row_of, order))


def _sorted(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(values in the order of their keys, where each key starts); equal keys keep theirs.

  It sorts part after part, since NumPy's argsort would take 24 bytes a value.

  Args:
    keys: int[n], from 0.
    values: int[n], below 2**31.
  Returns:
    int32[n], and int64[largest key + 2].
  """
  starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(keys))])
  free, out = starts.copy(), np.empty(len(keys), np.int32)
  for at in range(0, len(keys), _PART):
    part = keys[at : at + _PART]
    order = np.argsort(part, kind="stable")
    found, first, counts = np.unique(part[order], return_index=True, return_counts=True)
    places = np.repeat(free[found] - first, counts) + np.arange(len(part))
    out[places] = values[at : at + _PART][order]
    free[found] += counts
  return out, starts


def _best_fit(lengths: np.ndarray, max_tokens: int) -> np.ndarray:
  """int32[n]: the row of each example; lengths decrease.

  An example goes to the row with the least room that is enough; among several, to the
  one that was put there last. Examples of one length are placed together: a row that is
  taken gets as many as fit, since it stays the one with the least room.
  """
  row_of = np.empty(len(lengths), np.int32)
  space: dict[int, list[np.ndarray]] = {}  # free tokens -> stack of rows, in parts
  rooms: list[int] = []  # the keys of `space`, in order
  cuts = np.flatnonzero(np.diff(lengths)) + 1
  made, bounds = 0, [0, *cuts.tolist(), len(lengths)]
  for at, end in itertools.pairwise(bounds):
    need = int(lengths[at])
    while at < end:
      place = bisect.bisect_left(rooms, need)
      new = place == len(rooms)
      room = max(max_tokens, need) if new else rooms[place]
      fit = room // need
      wanted = -(-(end - at) // fit)
      if new:
        taken = np.arange(made, made + wanted, dtype=np.int32)
        made += wanted
      else:
        part = space[room].pop()
        taken, rest = part[-wanted:][::-1], part[:-wanted]
        if len(rest):
          space[room].append(rest)
        elif not space[room]:
          del space[room], rooms[place]
      count = min(fit * len(taken), end - at)
      row_of[at : at + count] = np.repeat(taken, fit)[:count]
      at += count
      last = count - fit * (len(taken) - 1)  # examples in the last row
      _put(space, rooms, room - fit * need, taken[:-1])
      _put(space, rooms, room - last * need, taken[-1:])
  return row_of


def _put(space, rooms, room: int, rows: np.ndarray):
  if not len(rows):
    return
  if room not in space:
    space[room] = []
    bisect.insort(rooms, room)
  space[room].append(rows)


def lengths_of(examples: Sequence[Example]) -> np.ndarray:
  """int32[examples]: the number of tokens of each."""
  if isinstance(examples, Examples):
    return examples.lengths
  return np.array([len(e.tokens) for e in examples], np.int32)


def to_arrays(rows: list[list[Example]], max_tokens: int) -> dict[str, np.ndarray]:
  """One batch of arrays [rows, max_tokens], from rows of examples.

  Returns:
    tokens, targets (int32): the target of a token is the next token of its example.
    weights (float32): 1 where the loss supervises the target, otherwise 0.
    position, segment (int32): see `attention.Where`.
  """
  shape = (len(rows), max_tokens)
  out: dict[str, np.ndarray] = {
    name: np.zeros(shape, np.int32)
    for name in ("tokens", "targets", "position", "segment")
  }
  out["weights"] = np.zeros(shape, np.float32)
  for r, row in enumerate(rows):
    at = 0
    for s, example in enumerate(row, 1):
      n = len(example.tokens)
      here = slice(at, at + n)
      out["tokens"][r, here] = example.tokens
      out["targets"][r, at : at + n - 1] = example.tokens[1:]
      out["weights"][r, at : at + n - 1] = example.supervised[1:]
      out["position"][r, here] = np.arange(n)
      out["segment"][r, here] = s
      at += n
  return out


@dataclasses.dataclass(frozen=True)
class Batches:
  """An endless sequence of shuffled batches; every process gets the same at a step.

  Attributes:
    rows: rows of examples, e.g. from `pack`.
    max_tokens: length of a row in tokens.
    batch_size: rows per batch.
    seed: of the shuffling; every epoch has another order.
    arrays: (rows, max_tokens) -> a batch; an objective's `batch`.
  """

  rows: Sequence[list[Example]]
  max_tokens: int
  batch_size: int
  seed: int
  arrays: Callable = to_arrays

  @property
  def epoch_steps(self) -> float:
    """Number of steps in one pass over the data; not always whole."""
    return len(self.rows) / self.batch_size

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    """The batch of a step, see `arrays`.

    Raises:
      InputError: no token of the batch is supervised.
    """
    positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
    numbers = order.rows(positions, len(self.rows), self.seed)
    batch = self.arrays([self.rows[i] for i in numbers], self.max_tokens)
    if not batch["weights"].any():
      raise InputError(
        f"batch {step} has no supervised token; raise train.batch_size "
        f"({self.batch_size}) or data.max_tokens ({self.max_tokens})"
      )
    return batch


def make(
  examples, max_tokens: int, batch_size: int, packed: bool, seed: int, arrays=to_arrays
) -> Batches:
  """`Batches` of the examples; one example per row, or as many as fit if `packed`."""
  numbers = np.arange(0 if packed else len(examples) + 1)
  rows = pack(examples, max_tokens) if packed else Rows(examples, numbers, numbers)
  return Batches(rows, max_tokens, batch_size, seed, arrays)


def preview(batch: dict[str, np.ndarray], tokenizer, color: bool) -> str:
  """The first example of a batch as text that shows which part is supervised.

  Of preferences it is the first group, with its texts one after another.

  Args:
    batch: arrays from `to_arrays`, or from `pairs.to_arrays`.
    tokenizer: a `Tokenizer`.
    color: whether to print the supervised part in green; otherwise it is in [[ ]].
  """
  length = int((batch.get("group", batch["segment"])[0] == 1).sum())
  tokens = batch["tokens"][0, :length]
  learned = np.concatenate([[False], batch["weights"][0, : length - 1] > 0])
  on, off = ("\x1b[32m", "\x1b[0m") if color else ("[[", "]]")
  out, i = "", 0
  while i < length:
    j = i
    while j < length and learned[j] == learned[i]:
      j += 1
    text = tokenizer.decode(tokens[i:j], skip_special=False)
    out += f"{on}{text}{off}" if learned[i] else text
    i = j
  return out
