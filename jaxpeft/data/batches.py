"""Packs examples into rows and batches, as a pure function of (examples, seed, step).

A row holds one or more examples one after another. Each is a segment that attends only
to itself, with positions from 0. To resume at a step, no state is needed.
"""

import bisect
import dataclasses
import functools
from typing import Any, cast

import grain
import numpy as np

from jaxpeft.data.encode import Example
from jaxpeft.errors import InputError


def pack(examples: list[Example], max_tokens: int) -> list[list[Example]]:
  """Rows of at most `max_tokens` tokens each, made of whole examples.

  The result depends only on the lengths and the order of the examples.

  Source: best-fit decreasing bin packing, which asymptotically needs at most 11/9 of
  the optimal number of rows (Johnson et al., 1974).
  """
  order = sorted(range(len(examples)), key=lambda i: -len(examples[i].tokens))
  space: dict[int, list[int]] = {}  # free tokens -> rows that have so many left
  rooms: list[int] = []  # the keys of `space`, in order
  rows: list[list[Example]] = []
  for i in order:
    need = len(examples[i].tokens)
    place = bisect.bisect_left(rooms, need)
    if place == len(rooms):
      rows.append([])
      index, room = len(rows) - 1, max_tokens
    else:
      room = rooms[place]
      index = space[room].pop()
      if not space[room]:
        del space[room], rooms[place]
    rows[index].append(examples[i])
    if room - need not in space:
      space[room - need] = []
      bisect.insort(rooms, room - need)
    space[room - need].append(index)
  return rows


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
  """

  rows: list[list[Example]]
  max_tokens: int
  batch_size: int
  seed: int
  _batches: Any = dataclasses.field(init=False, repr=False, compare=False)

  def __post_init__(self):
    order = grain.MapDataset.source(self.rows).seed(self.seed).shuffle().repeat()
    arrays = functools.partial(to_arrays, max_tokens=self.max_tokens)
    made = order.batch(self.batch_size, batch_fn=cast(Any, arrays))
    object.__setattr__(self, "_batches", made)

  @property
  def epoch_steps(self) -> float:
    """Number of steps in one pass over the data; not always whole."""
    return len(self.rows) / self.batch_size

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    """The batch of a step, see `to_arrays`.

    Raises:
      InputError: no token of the batch is supervised.
    """
    batch = self._batches[step]
    if not batch["weights"].any():
      raise InputError(
        f"batch {step} has no supervised token; raise train.batch_size "
        f"({self.batch_size}) or data.max_tokens ({self.max_tokens})"
      )
    return batch


def make(
  examples, max_tokens: int, batch_size: int, packed: bool, seed: int
) -> Batches:
  """`Batches` of the examples; one example per row, or as many as fit if `packed`."""
  rows = pack(examples, max_tokens) if packed else [[e] for e in examples]
  return Batches(rows, max_tokens, batch_size, seed)


def preview(batch: dict[str, np.ndarray], tokenizer, color: bool) -> str:
  """The first example of a batch as text that shows which part is supervised.

  Args:
    batch: arrays from `to_arrays`.
    tokenizer: a `Tokenizer`.
    color: whether to print the supervised part in green; otherwise it is in [[ ]].
  """
  length = int((batch["segment"][0] == 1).sum())
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
