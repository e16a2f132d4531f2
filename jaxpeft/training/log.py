"""A run's records: metrics.jsonl, TensorBoard files, loss.png, and a progress bar.

If a run has several processes, only process 0 writes files and shows progress.
"""

import json
import pathlib
import sys
import time

import numpy as np
import tensorboardX
import tqdm

from jaxpeft import console
from jaxpeft.errors import InputError
from jaxpeft.parallel import distributed
from jaxpeft.training import plots


class Log:
  """Metrics of a run, one JSON object per line, in metrics.jsonl and TensorBoard.

  When a run resumes at `step`, lines with a larger step are dropped, because the
  resumed run writes the same lines again. A new run passes -1.
  """

  def __init__(self, workdir: pathlib.Path, step: int):
    self._path = workdir / "metrics.jsonl"
    self.lines = [line for line in read(self._path) if line["step"] <= step]
    self._board = None
    distributed.barrier("log is read")
    if not distributed.is_main():
      return
    text = "".join(json.dumps(line) + "\n" for line in self.lines)
    self._path.with_suffix(".tmp").write_text(text)
    self._path.with_suffix(".tmp").replace(self._path)
    self._board = tensorboardX.SummaryWriter(
      str(workdir / "tensorboard"), purge_step=step + 1 if step > 0 else None
    )

  def write(self, step: int, **values):
    """Appends a line to metrics.jsonl, and its numbers to TensorBoard."""
    line = dict(step=step, **values)
    self.lines.append(line)
    if self._board is None:
      return
    with self._path.open("a") as f:
      f.write(json.dumps(line) + "\n")
    for name, value in values.items():
      if isinstance(value, int | float) and not isinstance(value, bool):
        self._board.add_scalar(name, value, step)

  def last(self, name: str):
    """The most recent value of `name`, or None."""
    return next((line[name] for line in reversed(self.lines) if name in line), None)

  def plot(self, path: pathlib.Path, title: str, final: dict | None = None):
    """Draws the run's losses, and the accuracy of its result `final`."""
    if self._board is not None:
      plots.loss(path, self.lines, title, final)

  def close(self):
    """Flushes the TensorBoard file."""
    if self._board is not None:
      self._board.close()


def read(path: pathlib.Path) -> list[dict]:
  """The lines of a metrics.jsonl, except a last one that a killed run left incomplete.

  Raises:
    InputError: any other line is not JSON.
  """
  if not path.exists():
    return []
  lines = path.read_text().split("\n")
  out = []
  for number, line in enumerate(lines, 1):
    if not line:
      continue
    try:
      out.append(json.loads(line))
    except json.JSONDecodeError as e:
      if number >= len(lines) - 1:
        break
      raise InputError(f"{path}, line {number}: not JSON: {e}") from e
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
    self._total, self._first, self._started = total, initial, time.time()
    self.restart()

  def restart(self):
    """Restarts the count of tokens/s, e.g. to leave out the time of an evaluation."""
    self._clock, self._tokens = time.time(), 0

  def count(self, segment):
    """Counts one step, and its tokens: those whose `segment` is not 0 (padding)."""
    self._tokens += int(np.count_nonzero(segment))
    self._bar.update()

  def show(self, step: int, loss: float, lr: float) -> float:
    """Shows loss and speed; returns tokens/s since the last call or `restart`."""
    speed = self._tokens / (time.time() - self._clock)
    self.restart()
    self._bar.set_postfix_str(f"loss {loss:.4f} {console.human(speed)}tokens/s")
    if self._bar.disable:
      spent = time.time() - self._started
      left = (self._total - step) * spent / (step - self._first)
      console.note(
        f"step {step}/{self._total} loss {loss:.4f} lr {lr:.2g} "
        f"{console.human(speed)}tokens/s, about {left:.0f} s left"
      )
    return speed

  def close(self):
    """Closes the bar."""
    self._bar.close()
