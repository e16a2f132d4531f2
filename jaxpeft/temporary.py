"""Temporary directories, and what killed runs left of them.

A directory is locked for as long as its process lives. One that is not locked was left
by a process that was killed, and is removed.
"""

import contextlib
import fcntl
import os
import pathlib
import shutil
import tempfile
import time

_YOUNG = 60.0  # seconds; a younger directory may be one that is not locked yet


@contextlib.contextmanager
def directory(parent: pathlib.Path, prefix: str):
  """A context with a new directory in `parent`, which is removed at its end.

  What killed processes left in `parent` under the same prefix is removed first.
  """
  remove_stale(parent, prefix)
  path = pathlib.Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
  lock = _lock(path)
  try:
    yield path
  finally:
    shutil.rmtree(path, ignore_errors=True)
    if lock is not None:
      os.close(lock)


def remove_stale(parent: pathlib.Path, prefix: str, age: float = _YOUNG):
  """Removes directories PREFIX* in `parent` that no process holds.

  Args:
    parent: where they are.
    prefix: what their names begin with.
    age: seconds since the last change below which one is left alone.
  """
  for path in parent.glob(f"{prefix}*"):
    try:
      if path.is_dir() and time.time() - path.stat().st_mtime >= age:
        lock = _lock(path)
        if lock is not None:
          shutil.rmtree(path, ignore_errors=True)
          os.close(lock)
    except OSError:
      continue  # another process removed it


def swap_in(new: pathlib.Path, path: pathlib.Path):
  """Moves the directory `new` to `path`; the one that is there is removed.

  After a kill at any moment, `path` is the old or the new one once `tidy` was called.
  """
  old = _old(path)
  if path.exists():
    shutil.rmtree(old, ignore_errors=True)
    os.replace(path, old)
  os.replace(new, path)
  shutil.rmtree(old, ignore_errors=True)


def tidy(folder: pathlib.Path):
  """Finishes or undoes what a killed process left in a run's directory.

  Only the process that holds the run's lock may call this.
  """
  for old in folder.glob(".*.old"):
    path = old.with_name(old.name[1 : -len(".old")])
    if path.exists():
      shutil.rmtree(old, ignore_errors=True)
    else:  # killed between the two moves of `swap_in`
      os.replace(old, path)
  remove_stale(folder, ".adapter-", age=0)
  for file in folder.glob("*.tmp"):
    if file.is_file() and time.time() - file.stat().st_mtime >= _YOUNG:
      file.unlink(missing_ok=True)


def _old(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(f".{path.name}.old")


def _lock(path: pathlib.Path) -> int | None:
  """An open file that locks a directory; None if it is locked or cannot be."""
  file = os.open(path, os.O_RDONLY)
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError:  # locked, or a file system without locks
    os.close(file)
    return None
  return file
