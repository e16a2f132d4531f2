"""Continuous batching: many answers from a pool of rows that never waits for the last.

As soon as some rows have ended, the next prompts take their places. Jobs with the same
prompt share its reading, and prompts with a common beginning share the reading of that.
An answer depends on its job alone: its prompt, key and temperature.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxpeft import console
from jaxpeft.generation import batch, decode, memory, pool
from jaxpeft.generation.sampling import Sampling
from jaxpeft.parallel import sharding
from jaxpeft.transformer.decoder import Transformer
from jaxpeft.transformer.rope import needs_length

_STEPS = 32  # of one call of the program, after which texts are looked at
_REFILL = 8  # a pool is filled up when one of so many rows is free
_SHARED = 32  # tokens; a shorter common beginning is not worth a program
_PADDING = 48  # tokens of a prompt that cost less than one more program
_ROWS = 256  # of a pool, if memory holds more


class Job(NamedTuple):
  """One answer to draw."""

  prompt: Sequence[int]  # token ids
  new: int  # most new tokens
  key: Any  # uint32[2], raw data of the PRNG key of all its draws
  temperature: float = 0.0
  end: int = 0  # index of its `End`


class End(NamedTuple):
  """What ends an answer."""

  tokens: frozenset[int]  # ids
  reached: Callable[[list[int]], bool] | None = None  # looks at the new tokens so far


class Drawn(NamedTuple):
  """An answer."""

  tokens: list[int]  # with the one that ended it; `End.reached` may see a few too many
  logprobs: np.ndarray  # float32, of each token by the model itself, in nats
  ended: bool  # by its `End`, not by `Job.new`


def draw(
  transformer: Transformer,
  params,
  jobs: list[Job],
  ends: list[End],
  sampling: Sampling = Sampling(),
  batch_size: int | None = None,
  drafts: int = 0,
  label: str | None = None,
) -> list[Drawn]:
  """The answers of all jobs, in their order.

  Args:
    transformer, params: the model.
    jobs: what to draw.
    ends: what may end an answer.
    sampling: how tokens are drawn; its temperature is replaced by the jobs'.
    batch_size: most rows of a pool; None or 0 is as many as memory holds.
    drafts: tokens that each step guesses from the text so far (`pool.lookup`). The
      answers are the same, and fewer steps are needed if texts repeat themselves.
    label: what is said of the progress; None says nothing.
  Raises:
    InputError: a prompt is empty, or needs more positions than the model has.
  """
  for new in sorted({job.new for job in jobs}):
    prompts = [list(job.prompt) for job in jobs if job.new == new]
    decode.check(transformer, prompts, new, batch_size)
  own = decode.unstack(transformer, params)
  out: list[Drawn | None] = [None] * len(jobs)
  with console.Bar(label, sum(job.new for job in jobs), "tokens") as bar:
    for slots, some in _pools(jobs, drafts):
      # Long prompts first, equal ones together.
      order = sorted(some, key=lambda i: (-len(jobs[i].prompt), tuple(jobs[i].prompt)))
      rows = _rows(transformer, jobs, some, slots, batch_size)
      work = _Work((transformer, params), own, ends, sampling, drafts, rows, slots)
      work.run(jobs, collections.deque(order), out, bar)
  return [drawn for drawn in out if drawn is not None]


class _Work:
  """A pool that is kept busy; the host's side of it."""

  def __init__(self, whole, own, ends, sampling, drafts: int, rows: int, slots: int):
    vocab = whole[0].config.vocab_size
    count = 1 << max(0, len(ends) - 1).bit_length()  # few shapes, so few programs
    self.stops = np.zeros((count, vocab), bool)
    for i, end in enumerate(ends):
      self.stops[i, [t for t in end.tokens if t < vocab]] = True
    self.whole, self.own, self.ends, self.drafts = whole, own, ends, drafts
    self.sampling = dataclasses.replace(sampling, temperature=0.0)
    self.slots = slots
    self.pool = pool.empty(*own, rows, slots, sampling.penalizes)
    self.jobs: list[int | None] = [None] * rows  # the job of each row
    self.lengths: list[int] = []  # to which prompts are padded
    self.prefix: tuple[tuple, Any] = ((), None)

  def run(self, jobs, waiting, out, bar):
    """Draws the jobs `waiting`; puts the answers into `out`."""
    greedy = all(jobs[i].temperature == 0 for i in waiting)
    rows, told = len(self.jobs), 0
    keep, got = np.ones(rows, bool), 0
    while waiting or any(i is not None for i in self.jobs):
      free = [r for r, i in enumerate(self.jobs) if i is None]
      # All rows at once, or a fixed number of them, so that few programs are compiled.
      size = rows if len(free) == rows else max(1, rows // _REFILL)
      while waiting and len(free) >= size:
        taken = [waiting.popleft() for _ in free[:size] if waiting]
        self._admit(jobs, taken, free[: len(taken)], size, greedy)
        free, keep = free[len(taken) :], np.ones(rows, bool)
      # Rows without a job count as ended.
      enough = max(1, rows // _REFILL) if waiting else rows
      self.pool, state = pool.go_on(
        *self.own, self.pool, keep, np.int32(enough), self.stops, self.sampling, greedy,
        self.drafts, _STEPS,
      )  # fmt: skip
      text, logprob, filled, drawn, active = map(np.asarray, state)
      keep, spent = active.copy(), 0
      for row, i in enumerate(self.jobs):
        if i is None:
          continue
        stop = filled[row] + 1
        new = text[row, stop - drawn[row] : stop].tolist()
        end = self.ends[jobs[i].end]
        done = new[-1] in end.tokens or bool(end.reached and end.reached(new))
        spent += len(new)
        if done or not active[row]:
          logps = logprob[row, stop - drawn[row] : stop].copy()
          out[i] = Drawn(new, logps, done)
          self.jobs[row], keep[row] = None, False
          got += jobs[i].new
          spent -= len(new)
      bar.update(max(0, got + spent - told))
      told = max(told, got + spent)

  def _admit(self, jobs, taken: list[int], rows: list[int], count: int, greedy: bool):
    """Reads the prompts of some jobs, at most `count`, into free rows."""
    prompts = list(dict.fromkeys(tuple(jobs[i].prompt) for i in taken))
    prefix, at = self._shared(prompts)
    own = [list(p[at:]) for p in prompts]
    slots = min(self._bucket(max(map(len, own))), self.slots - at)
    few = 1 << (len(prompts) - 1).bit_length()  # copies of a prompt are read once
    size = few if few <= count // 2 else count
    tokens, length = decode.padded(own, size, slots)
    text, _ = decode.padded([list(p) for p in prompts], size, self.slots)
    some = [jobs[i] for i in taken]
    some += some[-1:] * (count - len(some))
    given = pool.Prompts(
      tokens, length, text,
      np.array([prompts.index(tuple(job.prompt)) for job in some], np.int32),
      np.array((rows + rows[-1:] * count)[:count], np.int32),
      np.int32(len(taken)),
      np.array([job.new for job in some], np.int32),
      np.array([job.key for job in some], np.uint32),
      np.array([job.temperature for job in some], np.float32),
      np.array([job.end for job in some], np.int32),
    )  # fmt: skip
    self.pool = pool.admit(
      *self.whole, self.pool, given, prefix, self.stops, self.sampling, greedy
    )
    for row, i in zip(rows, taken, strict=True):
      self.jobs[row] = i

  def _bucket(self, length: int) -> int:
    """To how many tokens prompts are padded: as others were, if that costs little."""
    for slots in self.lengths:
      if length <= slots <= max(length + _PADDING, 1.5 * length):
        return slots
    self.lengths.append(batch.bucket(length))
    return self.lengths[-1]

  def _shared(self, prompts: list[tuple]) -> tuple[pool.Prefix | None, int]:
    """(prefix, its length) that prompts share; (None, 0) if it is short."""
    at = min(_common(prompts), min(map(len, prompts)) - 1)
    held, prefix = self.prefix
    # The one of the last prompts serves as well if it is not much shorter.
    if prefix is not None and len(held) <= at and len(held) >= at - _SHARED:
      if prompts[0][: len(held)] == held:
        return prefix, len(held)
    single = len(prompts) == 1
    if single or at < _SHARED or needs_length(self.whole[0].config):
      return None, 0
    held = prompts[0][:at]
    tokens, _ = decode.padded([list(held)], 1, min(batch.bucket(at), self.slots))
    prefix = pool.read_prefix(*self.whole, tokens, np.int32(at))
    self.prefix = held, prefix
    return prefix, at


def _pools(jobs, drafts: int) -> list[tuple[int, list[int]]]:
  """[(slots, indices of jobs)]: short texts do not pay for the slots of long ones."""
  need = [len(job.prompt) + job.new + drafts + 1 for job in jobs]
  groups: dict[int, list[int]] = {}
  for i, n in enumerate(need):
    groups.setdefault(max(64, 1 << (n - 1).bit_length()), []).append(i)
  out: list[tuple[int, list[int]]] = []
  for size in sorted(groups, reverse=True):
    if out and len(groups[size]) < 16:  # too few to be worth programs of their own
      out[-1][1].extend(groups[size])
    else:
      out.append((size, groups[size]))
  return [(batch.bucket(max(need[i] for i in some)), some) for _, some in out]


def _rows(transformer, jobs, some, slots: int, limit: int | None) -> int:
  """The rows of a pool for some jobs."""
  new = max(jobs[i].new for i in some)
  most = memory.budget() // max(1, memory.row_bytes(transformer, slots, new))
  most = max(1, min(most, limit or _ROWS, len(some)))
  ways = sharding.cut("batch")
  return most if most <= ways else most // ways * ways


def _common(prompts: list[tuple]) -> int:
  """How many tokens at the beginning of all prompts are equal."""
  first, last = min(prompts), max(prompts)
  pairs = enumerate(zip(first, last, strict=False))
  return next((i for i, (a, b) in pairs if a != b), min(len(first), len(last)))
