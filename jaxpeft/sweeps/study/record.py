"""What a study has measured so far: points.jsonl, and tables made from it.

A line of points.jsonl is one measurement. All lines of a run are written at once, when
the run has ended; the last line says that it has. So a killed process loses only the
runs that it was training. They are trained again from their start.
"""

import csv
import json
import os
import pathlib
import threading

from jaxpeft.errors import InputError

COLUMNS = "run width depth n n_no_embed d step flops loss budget rate".split()


class Record:
  """The lines of points.jsonl. Threads may add to it."""

  def __init__(self, path: pathlib.Path):
    """Reads the file, if it is there, and drops what a killed process left in it.

    Raises:
      InputError: a line in the middle is no JSON object.
    """
    self._path, self._lock = path, threading.Lock()
    lines = _read(path) if path.exists() else []
    ended = {line["run"] for line in lines if line.get("final")}
    self.lines = [line for line in lines if line["run"] in ended]
    text = "".join(map(_text, self.lines))
    if path.exists() and path.read_text(errors="replace") != text:
      new = path.with_suffix(".tmp")
      new.write_text(text)
      os.replace(new, path)

  def ended(self, run: str) -> bool:
    """Whether a run of this name is recorded."""
    with self._lock:
      return any(line["run"] == run for line in self.lines)

  def add(self, lines: list[dict]):
    """Writes all lines of runs that have ended."""
    with self._lock:
      with open(self._path, "a") as file:
        file.write("".join(map(_text, lines)))
        file.flush()
        os.fsync(file.fileno())
      self.lines += lines


def table(lines: list[dict], path: pathlib.Path):
  """Writes lines as sorted CSV with the columns `COLUMNS`."""
  rows = sorted(lines, key=lambda x: (x["n"], x["width"], x["run"], x["step"]))
  new = path.with_suffix(".tmp")
  with open(new, "w", newline="") as file:
    writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
  os.replace(new, path)


def _text(line: dict) -> str:
  return json.dumps(line) + "\n"


def _read(path: pathlib.Path) -> list[dict]:
  """The lines of the file, without a last one that was cut off."""
  texts = path.read_text(errors="replace").splitlines()
  found = []
  for i, text in enumerate(texts):
    try:
      line = json.loads(text)
      if not isinstance(line, dict) or not isinstance(line.get("run"), str):
        raise ValueError("it names no run")
    except (ValueError, RecursionError) as e:
      if i == len(texts) - 1:
        break
      raise InputError(
        f"{path}: line {i + 1} is no measurement ({e}); remove that line, and its run "
        "is trained again"
      ) from e
    found.append(line)
  return found
