"""Prints lines for people: results on stdout, notes on stderr, from process 0 only.

What takes long is shown as a bar on a terminal, and otherwise as a line every few
seconds, so that a log says what is going on.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator

import tqdm

from jaxpeft.parallel import distributed

_FIRST, _LAST = 5.0, 30.0  # seconds between two lines: early, and after some minutes


def say(text: str):
  """Prints a result, for people or programs, on stdout."""
  if distributed.is_main():
    print(text)


def note(text: str):
  """Prints a line for people on stderr, above a progress bar if there is one."""
  if not distributed.is_main():
    return
  tqdm.tqdm.write(text, file=sys.stderr)


class Bar:
  """Progress of work whose amount is known; as a context manager, it ends with it.

  A terminal shows a bar once the work takes 3 s, and other outputs a line after 5 s.
  """

  def __init__(self, label: str | None, total: int, unit: str):
    """Begins with nothing done.

    Args:
      label: what is done, e.g. "adapting"; None shows nothing.
      total: the amount of work.
      unit: what is counted, in the plural, e.g. "weights".
    """
    self._label, self._total, self._unit = label, total, unit
    self._done, self._started = 0, time.monotonic()
    self._next = _FIRST
    shown = label is not None and distributed.is_main()
    terminal = sys.stderr.isatty()
    self._lines = shown and not terminal
    self._bar = tqdm.tqdm(
      total=total, desc=label, unit=f" {unit}", unit_scale=True, delay=3, leave=False,
      disable=not (shown and terminal), dynamic_ncols=True,
    )  # fmt: skip

  def update(self, amount: int = 1):
    """Counts work that is done."""
    self._done += amount
    self._bar.update(amount)
    spent = time.monotonic() - self._started
    if self._lines and spent >= self._next and self._done < self._total:
      self._next = spent + _pause(spent)
      left = spent * (self._total - self._done) / max(1, self._done)
      done, total = (human(x).strip() for x in (self._done, self._total))
      note(
        f"{self._label}: {done} of {total} {self._unit}, {spent:.0f} s, about "
        f"{left:.0f} s left"
      )

  def __enter__(self) -> "Bar":
    return self

  def __exit__(self, *_):
    self._bar.close()


def progress(items: Iterable, label: str | None, total: int, unit: str) -> Iterator:
  """The items one by one, with a `Bar` that counts them; arguments as there."""
  with Bar(label, total, unit) as bar:
    for item in items:
      yield item
      bar.update()


@contextlib.contextmanager
def waiting(label: str):
  """Says "still LABEL, 12 s" every few seconds while its body runs."""
  started, ended = time.monotonic(), threading.Event()

  def speak():
    spent = 0.0
    while not ended.wait(_pause(spent)):
      spent = time.monotonic() - started
      note(f"still {label}, {spent:.0f} s")

  speaker = threading.Thread(target=speak, daemon=True)
  if distributed.is_main():
    speaker.start()
  try:
    yield
  finally:
    ended.set()
    if speaker.ident is not None:
      speaker.join()


def _pause(spent: float) -> float:
  """Seconds until the next line, after so many seconds."""
  return min(_LAST, max(_FIRST, spent / 10))


def human(count: float) -> str:
  """A number with three digits and a unit prefix: 1234567 -> "1.23 M"."""
  for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
    if abs(count) >= size:
      return f"{count / size:.3g}{unit}"
  return f"{count:.3g} " if isinstance(count, float) else f"{count} "
