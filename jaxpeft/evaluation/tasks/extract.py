"""Finds the answer in a text: by a regular expression of the user's, or by its lines.

The expression meets texts that a model wrote, and Python's `re` may take exponential
time. So a text is cut, and a search is stopped after a second; such a text counts as
one without an answer. Only the main thread of a program can stop it.
"""

import contextlib
import re
import signal
import threading

from jaxpeft.errors import InputError

_LONGEST_PATTERN = 1000  # characters
_LONGEST_TEXT = 20_000  # characters that are searched
_SECONDS = 1.0


def check(pattern: str):
  """Raises InputError unless `eval.extract` is a regular expression, or empty."""
  if len(pattern) > _LONGEST_PATTERN:
    raise InputError(
      f"eval.extract has {len(pattern)} characters; at most {_LONGEST_PATTERN} are used"
    )
  try:
    with _limit(_SECONDS):
      re.compile(pattern)
  except (re.error, OverflowError, RecursionError, _TooLong) as e:
    raise InputError(
      f"eval.extract {pattern!r} is no regular expression: {e or 'it is too complex'}"
    ) from e


def search(pattern: str, text: str) -> str | None:
  """Group 1 of the first match in a text, or all of it if there is no group.

  None if nothing matches, or not within a second.
  """
  try:
    with _limit(_SECONDS):
      found = re.search(pattern, text[:_LONGEST_TEXT])
  except (_TooLong, RecursionError):
    return None
  return None if found is None else found[min(1, found.re.groups)]


def lines(text: str, count: int) -> str:
  """The first `count` lines of a text that are not empty."""
  kept = [line for line in text.splitlines() if line.strip()]
  return "\n".join(kept[:count])


class _TooLong(Exception):
  """A search took more than its time."""


@contextlib.contextmanager
def _limit(seconds: float):
  """Raises _TooLong in its body after so many seconds; `re` lets signals through."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def stop(*_):
    raise _TooLong

  old = signal.signal(signal.SIGALRM, stop)
  signal.setitimer(signal.ITIMER_REAL, seconds)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, old)
