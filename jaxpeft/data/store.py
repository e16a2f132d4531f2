"""Keeps the tokens of data sets in files, so that they are made once and not in memory.

An entry is a directory named for the hash of everything that its tokens depend on. It
appears at once and whole. Damaged entries are made again, and the entries that were not
used for longest are dropped once all of them exceed a limit.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable

from jaxpeft.caches import disk
from jaxpeft.data import examples
from jaxpeft.errors import InputError

_STALE_S = 3600  # a temporary directory untouched for so long has no writer


class Unwritable(InputError):
  """The files of an entry cannot be written."""


def keep(
  key: dict, make: Callable, note: Callable
) -> tuple[examples.Examples, examples.Counts]:
  """The examples of an entry, which is made if it is not there or is damaged.

  Args:
    key: everything that the examples depend on, as JSON data.
    make: called with an `examples.Files`; gives it all examples and finishes it.
    note: prints a line for people.
  Raises:
    Unwritable: the files cannot be written.
    InputError: what `make` raises.
  """
  most = disk.limit("data")
  name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
  folder = disk.folder("data")
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder / f"{name[:2]}.lock", note):
      found = _open(folder / name, note) or _make(folder / name, make)
      _drop(folder, folder / name, most)
      return found
  except OSError as e:
    hint = "free some space" if e.errno == errno.ENOSPC else "make it writable"
    raise Unwritable(
      f"cannot keep the data's tokens in {folder}: {e.strerror or e}; {hint}, or name "
      "another directory in JAXPEFT_CACHE"
    ) from e


def _open(entry: pathlib.Path, note: Callable):
  """The examples of an entry; None if there is none. A damaged one is removed."""
  if not entry.exists():
    return None
  found = examples.load(entry)
  if found is None:
    note(f"the kept tokens in {entry} are damaged; they are made again")
    shutil.rmtree(entry)
    return None
  os.utime(entry)  # when it was last used
  return found


def _make(entry: pathlib.Path, make: Callable):
  new = pathlib.Path(tempfile.mkdtemp(prefix=".new-", dir=entry.parent))
  files = examples.Files(new)
  try:
    make(files)
    new.chmod(0o755)
    new.rename(entry)
  except BaseException:
    files.close()
    shutil.rmtree(new, ignore_errors=True)
    raise
  found = examples.load(entry)
  if found is None:
    raise Unwritable(
      f"{entry} does not hold what was written there; check the disk, or name another "
      "directory in JAXPEFT_CACHE"
    )
  return found


def _drop(folder: pathlib.Path, used: pathlib.Path, most: float):
  """Drops what killed processes left, and the entries that were used longest ago."""
  now, entries = time.time(), []
  for path in folder.iterdir():
    with contextlib.suppress(OSError):  # another process may have dropped it
      if path.name.startswith(".new-"):
        last = max(x.stat().st_mtime for x in (path, *path.iterdir()))
        if now - last > _STALE_S:
          shutil.rmtree(path)
      elif (path / "about.json").exists():
        size = sum(x.stat().st_size for x in path.iterdir())
        entries.append((path.stat().st_mtime, size, path))
  total = sum(size for _, size, _ in entries)
  for _, size, path in sorted(entries):
    if total <= most:
      return
    if path != used:
      shutil.rmtree(path, ignore_errors=True)
      total -= size


@contextlib.contextmanager
def _lock(path: pathlib.Path, note: Callable):
  """Lets one process make an entry; others wait, and find it made."""
  with open(path, "w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      note("another process tokenizes such data; waiting for it ...")
      fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
      pass  # the file system has no locks
    yield
