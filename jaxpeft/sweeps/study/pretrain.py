"""Runs a study: tunes learning rates, pretrains what is missing, and writes tables.

Each size is one task, and there are as many threads as cores. Each run starts from new
weights, and its schedule ends with its budget. The measurements before the end of a run
are written, too; they are its training curve.
"""

import math
import os
import pathlib
import threading
from concurrent import futures
from typing import NamedTuple

import numpy as np

from jaxpeft import console
from jaxpeft.errors import InputError
from jaxpeft.sweeps.study import grid, members
from jaxpeft.sweeps.study.record import Record, table
from jaxpeft.training import workdir

_CURVE = (0.125, 0.25, 0.5, 1.0)  # shares of a run at which it is measured


class Result(NamedTuple):
  """What a study found."""

  points: pathlib.Path  # CSV: the end of each run
  curves: pathlib.Path  # CSV: all measurements
  entropy: float  # of the text, nats per token: the least loss that is possible
  rates: dict[str, float]  # size -> learning rate


class _Stopped(Exception):
  """Another thread failed, or the user wants to stop."""


def run(config, out: str) -> Result:
  """Trains what is missing of a study in a directory, and writes its tables.

  Args:
    config: of the study.
    out: the directory; one that holds a part of the same study is continued.
  Raises:
    InputError: wrong options, a directory of another study, or a run that diverged.
  """
  grid.check(config)
  if not (pathlib.Path(out) / "config.json").exists():  # refuse before writing it
    workdir.check(out, config)
    members.check(config)
  folder = workdir.prepare(out, config)
  record = Record(folder / "points.jsonl")
  source = grid.source(config)
  console.note(f"text: entropy {source.entropy:.6f} nats per token, no loss is less")
  study = _Study(config, source, record)
  tuning, runs = grid.tuning(config), grid.runs(config)
  work = {}
  for one in tuning:
    work.setdefault(one.size, []).append(lambda one=one: study.tune(one))
  study.do(work, "tuning")
  rates = learning_rates(config, record.lines)
  work = {}
  for group in _groups(runs):
    rate = rates[group[0].size.name]
    task = lambda group=group, rate=rate: study.train(group, rate)  # noqa: E731
    work.setdefault(group[0].size, []).append(task)
  study.do(work, "pretraining")
  found = [line for line in record.lines if "flops" in line]
  points, curves = folder / "points.csv", folder / "curves.csv"
  table([line for line in found if line["final"]], points)
  table(found, curves)
  return Result(points, curves, source.entropy, rates)


def text(result: Result) -> str:
  """What a study found, as text."""
  rates = ", ".join(f"{name} {rate:.3g}" for name, rate in result.rates.items())
  return (
    f"learning rates by size: {rates}\n"
    f"entropy of the text, the least loss that is possible: {result.entropy:.6f}\n"
    f"{result.points}: the end of every run; {result.curves}: every measurement"
  )


def learning_rates(config, lines: list[dict]) -> dict[str, float]:
  """The learning rate of each size, from the runs that tuned some of them.

  The best rate of a tuned size is the vertex of a parabola in log(rate) through the
  three rates around the best one. A line in log(size) through these best rates gives
  the rate of every size. With one tuned size, the rate is the same for all.

  Args:
    config: of the study.
    lines: of points.jsonl.
  Raises:
    InputError: a tuned size diverged at every rate.
  """
  sizes, grid_ = grid.sizes(config), sorted(config.scaling.rates)
  if len(grid_) == 1:
    return {size.name: float(grid_[0]) for size in sizes}
  found = []
  for size in sizes[: config.scaling.tuned]:
    losses = {
      line["rate"]: line["loss"] for line in lines if line["run"] == f"{size.name}-tune"
    }
    loss = np.array([np.inf if losses[r] is None else losses[r] for r in grid_])
    if not np.isfinite(loss).any():
      raise InputError(
        f"the size {size.name} diverged at every rate of scaling.rates {grid_}; give "
        "lower ones"
      )
    best = _vertex(np.log(grid_), loss)
    found.append((math.log(grid.parameters(config, size)[0]), best))
  x, y = np.array(found).T
  slope, start = np.polyfit(x, y, 1) if len(x) > 1 else (0.0, y[0])
  at = {size.name: math.log(grid.parameters(config, size)[0]) for size in sizes}
  return {name: math.exp(start + slope * n) for name, n in at.items()}


def _vertex(x, y) -> float:
  """Where a parabola through the least value and its neighbors is least."""
  i = int(np.argmin(y))
  if i in (0, len(x) - 1) or not np.isfinite(y[i - 1 : i + 2]).all():
    return float(x[i])
  a, b, _ = np.polyfit(x[i - 1 : i + 2] - x[i], y[i - 1 : i + 2], 2)
  best = x[i] - b / (2 * a) if a > 0 else x[i]
  return float(np.clip(best, x[i - 1], x[i + 1]))


def _groups(runs: list[grid.Run]) -> list[list[grid.Run]]:
  """Runs that differ only in their seed, together."""
  found: dict = {}
  for one in runs:
    found.setdefault((one.size, one.budget), []).append(one)
  return list(found.values())


class _Study:
  """What the threads of a study share."""

  def __init__(self, config, source, record: Record):
    self._config, self._source, self._record = config, source, record
    self._programs, self._stop = {}, threading.Event()
    self._lock, self._bar = threading.Lock(), None
    self._per_step = config.train.batch_size * config.data.max_tokens

  def do(self, work: dict, label: str):
    """Does the tasks of each size in turn, and sizes side by side."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    total = sum(len(tasks) for tasks in work.values())
    with (
      console.Bar(label, total, "runs") as bar,
      futures.ThreadPoolExecutor(workers) as pool,
    ):
      jobs = [pool.submit(self._all, tasks, bar) for tasks in work.values()]
      try:
        for job in futures.as_completed(jobs):
          job.result()
      finally:  # after an error, or Ctrl-C, the others stop at their next chunk
        self._stop.set()
        pool.shutdown(cancel_futures=True)
      self._stop.clear()

  def _all(self, tasks, bar):
    for task in tasks:
      task()
      with self._lock:
        bar.update()

  def tune(self, one: grid.Run):
    """Trains one size at all learning rates."""
    rates = sorted(self._config.scaling.rates)
    if self._record.ended(one.name):
      return
    losses, last, width = [], len(rates) - 1, self._config.scaling.seeds
    for i in range(0, len(rates), width):  # as many at a time as there will be seeds
      some = rates[i : i + width]
      some += [some[-1]] * (width - len(some))
      losses += [*self._fit(one, [one.seed] * width, some)[-1][1]]
    self._record.add([
      dict(run=one.name, rate=rate, loss=_finite(loss), final=i == last)
      for i, (rate, loss) in enumerate(zip(rates, losses, strict=False))
    ])  # fmt: skip

  def train(self, group: list[grid.Run], rate: float):
    """Trains the runs of a group at a learning rate, unless they are recorded."""
    if all(self._record.ended(one.name) for one in group):
      return
    first, seeds = group[0], [one.seed for one in group]
    measured = self._fit(first, seeds, [rate] * len(seeds))
    n, n_no_embed = grid.parameters(self._config, first.size)
    lines = []
    for i, one in enumerate(group):
      if self._record.ended(one.name):  # the last write was cut off
        continue
      for step, losses in measured:
        if not math.isfinite(losses[i]):
          raise InputError(
            f"the run {one.name} diverged at the learning rate {rate:.3g}; lower "
            "scaling.rates, or give an optim.clip_norm, and take another directory"
          )
        d = step * self._per_step
        lines.append(
          dict(
            run=one.name, width=one.size.width, depth=one.size.depth, n=n,
            n_no_embed=n_no_embed, d=d, step=step, flops=6 * n * d,
            loss=float(losses[i]), budget=float(one.budget), rate=float(f"{rate:.4g}"),
            seed=one.seed, final=step == one.steps,
          )
        )  # fmt: skip
    self._record.add(lines)

  def _fit(self, one: grid.Run, seeds, peaks):
    """[(step, held-out losses of the members)] of models trained side by side."""
    program = self._program(one.size)
    state = program.start(seeds)
    chunk = members.CHUNK
    rates = np.stack([members.rates(self._config, r, one.steps) for r in peaks], 1)
    room = -len(rates) % chunk
    rates = np.pad(rates, ((0, room), (0, 0)))  # steps at a rate of 0 change nothing
    ends = {math.ceil(share * one.steps / chunk) for share in _CURVE}
    found = []
    for i in range(len(rates) // chunk):
      if self._stop.is_set():
        raise _Stopped
      here = rates[i * chunk : (i + 1) * chunk]
      state = program.advance(state, seeds, here, i * chunk)
      if i + 1 in ends:
        step = min((i + 1) * chunk, one.steps)
        found.append((step, program.losses(state)))
    return found

  def _program(self, size: grid.Size) -> members.Group:
    if size not in self._programs:
      self._programs[size] = members.Group(self._config, self._source, size)
    return self._programs[size]


def _finite(x) -> float | None:
  return float(x) if math.isfinite(x) else None
