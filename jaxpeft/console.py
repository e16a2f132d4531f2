"""Prints lines for people: results on stdout, notes on stderr, from process 0 only."""

import sys

import tqdm

from jaxpeft.parallel import distributed


def say(text: str):
  """Prints a result, for people or programs, on stdout."""
  if distributed.is_main():
    print(text)


def note(text: str):
  """Prints a line for people on stderr, above a progress bar if there is one."""
  if not distributed.is_main():
    return
  tqdm.tqdm.write(text, file=sys.stderr)


def human(count: float) -> str:
  """A number with three digits and a unit prefix: 1234567 -> "1.23 M"."""
  for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
    if abs(count) >= size:
      return f"{count / size:.3g}{unit}"
  return f"{count:.3g} " if isinstance(count, float) else f"{count} "
