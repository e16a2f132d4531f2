"""A run's records: metrics.jsonl, trackers, loss.png, and a progress bar.

If a run has several processes, only process 0 writes files and shows progress.
"""

import json
import pathlib
import sys
import time

import numpy as np
import tqdm

from jaxpeft import console
from jaxpeft.errors import InputError
from jaxpeft.parallel import distributed
from jaxpeft.training import plots, trackers


class Log:
  """Metrics of a run, one JSON object per line, in metrics.jsonl and for trackers.

  When a run resumes at `step`, lines with a larger step are dropped, because the
  resumed run writes the same lines again. A new run passes -1.

  Each line has two times: `time`, in seconds since 1970, and `elapsed_s`, the seconds
  that the run has taken so far. The second goes on where a resumed run goes on: time
  between two starts, and work that was lost, do not count.
  """

  def __init__(self, workdir: pathlib.Path, step: int, config=None):
    """Opens the files.

    Args:
      workdir: the run's directory.
      step: where the run goes on; -1 if it is new.
      config: of the run; None has no trackers.
    Raises:
      InputError: a damaged file, or a tracker that does not start.
    """
    self._path = workdir / "metrics.jsonl"
    self.lines = [line for line in read(self._path) if line["step"] <= step]
    before = self.last("elapsed_s")
    self._before = float(before) if isinstance(before, int | float) else 0.0
    self._clock, self._trackers = time.monotonic(), []
    distributed.barrier("log is read")
    if not distributed.is_main():
      return
    text = "".join(json.dumps(line) + "\n" for line in self.lines)
    self._path.with_suffix(".tmp").write_text(text)
    self._path.with_suffix(".tmp").replace(self._path)
    if config is not None:
      self._trackers = trackers.start(workdir, step, config)

  def write(self, step: int, **values):
    """Appends a line to metrics.jsonl, and hands its numbers to the trackers."""
    elapsed = self._before + time.monotonic() - self._clock
    times = dict(time=round(time.time(), 3), elapsed_s=round(elapsed, 3))
    line = dict(step=step, **values, **times)
    self.lines.append(line)
    if not distributed.is_main():
      return
    with self._path.open("a") as f:
      f.write(json.dumps(line) + "\n")
    numbers = {
      name: value
      for name, value in values.items()
      if isinstance(value, int | float) and not isinstance(value, bool)
    }
    for tracker in self._trackers:
      tracker.scalars(step, numbers)

  def last(self, name: str):
    """The most recent value of `name`, or None."""
    return next((line[name] for line in reversed(self.lines) if name in line), None)

  def at(self, step: int, name: str):
    """The first value of `name` at a step, or None."""
    found = (x[name] for x in self.lines if x["step"] == step and name in x)
    return next(found, None)

  def plot(self, path: pathlib.Path, title: str, final: dict | None = None):
    """Draws the run's losses, and the accuracy of its result `final`."""
    if distributed.is_main():
      plots.loss(path, self.lines, title, final)

  def close(self):
    """Closes the trackers."""
    for tracker in self._trackers:
      tracker.close()


def read(path: pathlib.Path) -> list[dict]:
  """The lines of a metrics.jsonl, except a last one that a killed run left incomplete.

  Raises:
    InputError: any other line is not JSON.
  """
  if not path.exists():
    return []
  try:
    lines = path.read_text().split("\n")
  except ValueError as e:
    raise InputError(f"{path} is damaged: {e}; restore it from a backup") from e
  out = []
  for number, line in enumerate(lines, 1):
    if not line:
      continue
    try:
      value = json.loads(line)
    except (ValueError, RecursionError) as e:
      if number >= len(lines) - 1:
        break
      raise InputError(f"{path}, line {number}: not JSON: {e}") from e
    if not isinstance(value, dict) or type(value.get("step")) is not int:
      raise InputError(f"{path}, line {number}: no object with a whole number `step`")
    out.append(value)
  return out


class Progress:
  """Loss, tokens/s and time left: a bar on a terminal, and otherwise lines of text."""

  def __init__(self, total: int, initial: int):
    self._bar = tqdm.tqdm(
      total=total,
      initial=initial,
      unit="step",
      disable=not (sys.stderr.isatty() and distributed.is_main()),
      dynamic_ncols=True,
    )
    self._total, self._first, self._started = total, initial, time.monotonic()
    self.restart()

  def restart(self):
    """Restarts the count of tokens/s, e.g. to leave out the time of an evaluation."""
    self._clock, self._tokens = time.monotonic(), 0

  def count(self, segment):
    """Counts one step, and its tokens: those whose `segment` is not 0 (padding)."""
    self._tokens += int(np.count_nonzero(segment))
    self._bar.update()

  def show(self, step: int, loss: float, lr: float) -> float:
    """Shows loss and speed; returns tokens/s since the last call or `restart`."""
    speed = self._tokens / (time.monotonic() - self._clock)
    self.restart()
    self._bar.set_postfix_str(f"loss {loss:.4f} {console.human(speed)}tokens/s")
    if self._bar.disable:
      spent = time.monotonic() - self._started
      left = (self._total - step) * spent / (step - self._first)
      console.note(
        f"step {step}/{self._total} loss {loss:.4f} lr {lr:.2g} "
        f"{console.human(speed)}tokens/s, about {left:.0f} s left"
      )
    return speed

  def close(self):
    """Closes the bar."""
    self._bar.close()
