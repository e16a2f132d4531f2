"""Whether two answers of mathematics are the same, by the package math-verify.

Its parser and sympy meet texts that a model wrote. They run in a process of their own
with a limit of memory, which is killed when a comparison takes too long; such an answer
counts as wrong.
"""

import atexit
import functools
import importlib.util
import json
import pathlib
import selectors
import subprocess
import sys
import threading
import time

from jaxpeft.errors import InputError

SECONDS = 10.0  # of a comparison
_START_S = 120.0  # until the process is ready
LONGEST = 10_000  # characters of a text that are read, from its end
_WORKER = pathlib.Path(__file__).with_name("math_worker.py")


def check():
  """Raises InputError unless math-verify is installed."""
  if importlib.util.find_spec("math_verify") is None:
    raise InputError("task math needs math-verify: pip install -e '.[eval]'")


@functools.lru_cache(maxsize=10_000)
def same(text: str, gold: str) -> bool:
  """Whether the answer that a text gives equals a right one, e.g. "\\frac12"."""
  return bool(_process.ask(text[-LONGEST:], gold)["same"])


@functools.lru_cache(maxsize=10_000)
def canonical(text: str) -> str | None:
  """The answer that a text gives; equal for many equal ones, as 1/2 and 0.5."""
  return _process.ask(text[-LONGEST:], None)["answer"]


class _Process:
  """The process that compares; started when it is needed, and again after a kill."""

  def __init__(self):
    self._child: subprocess.Popen | None = None
    self._lock = threading.Lock()

  def ask(self, text: str, gold: str | None) -> dict:
    with self._lock:
      child = self._child
      if child is None or child.poll() is not None:
        child = self._start()
      try:
        assert child.stdin is not None
        line = json.dumps(dict(text=text, gold=gold)) + "\n"
        child.stdin.write(line.encode())
        child.stdin.flush()
        return json.loads(_line(child, SECONDS))
      except (OSError, ValueError, TimeoutError):
        self.stop()
        return dict(answer=None, same=False)

  def stop(self):
    child, self._child = self._child, None
    if child is not None:
      child.kill()
      child.wait()
      for pipe in (child.stdin, child.stdout):
        if pipe is not None:
          try:
            pipe.close()
          except OSError:
            pass  # what was not written is lost, as it should be

  def _start(self) -> subprocess.Popen:
    self.stop()
    self._child = child = subprocess.Popen(
      [sys.executable, "-P", str(_WORKER)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      bufsize=0,
    )
    try:
      if _line(child, _START_S) != b"ready":
        raise ValueError
    except (OSError, ValueError, TimeoutError) as e:
      self.stop()
      raise InputError(
        "task math: the process that compares answers does not start; "
        "reinstall it: pip install -e '.[eval]'"
      ) from e
    return child


def _line(child: subprocess.Popen, seconds: float) -> bytes:
  """The next line of a process.

  Raises:
    TimeoutError: it took longer.
    OSError: the process ended.
  """
  pipe, found = child.stdout, b""
  assert pipe is not None
  end = time.monotonic() + seconds
  with selectors.DefaultSelector() as selector:
    selector.register(pipe, selectors.EVENT_READ)
    while not found.endswith(b"\n"):
      if not selector.select(max(0.0, end - time.monotonic())):
        raise TimeoutError
      some = pipe.read(65536)
      if not some:
        raise OSError("the process ended")
      found += some
  return found.strip()


_process = _Process()
atexit.register(_process.stop)
