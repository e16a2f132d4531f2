"""Bounded directories of files that can be made again.

A file appears whole or not at all. A directory drops the files that were not used for
longest once it exceeds its limit.
"""

import contextlib
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable

from jaxpeft.errors import InputError

# name -> (the most GB by default, what it holds)
CACHES = {
  "compiled": (2.0, "compiled programs"),
  "svd": (50.0, "singular value decompositions"),
  "data": (50.0, "tokens of data sets"),
  "answers": (0.1, "answers of base models"),
}
_VARIABLES = {name: f"JAXPEFT_{name.upper()}_CACHE_GB" for name in CACHES}
_STALE_S = 3600  # a temporary file untouched for so long has no writer
_FILL = 0.8  # share of the limit that is left after files were dropped


def folder(name: str) -> pathlib.Path:
  """The directory of a cache: $JAXPEFT_CACHE/NAME or ~/.cache/jaxpeft/NAME."""
  base = os.environ.get("JAXPEFT_CACHE") or pathlib.Path.home() / ".cache" / "jaxpeft"
  return pathlib.Path(base).expanduser() / name


def limit(name: str) -> float:
  """The most bytes of a cache: $JAXPEFT_NAME_CACHE_GB, 0 for none.

  It is also at most a quarter of what the disk has free, besides the cache itself.

  Raises:
    InputError: the variable is no number from 0.
  """
  variable = _VARIABLES[name]
  text = os.environ.get(variable, str(CACHES[name][0]))
  try:
    if not (gigabytes := float(text)) >= 0:
      raise ValueError
  except ValueError as e:
    raise InputError(f"{variable} is {text!r}; it must be a number from 0") from e
  return gigabytes * 1e9


def allowed(name: str) -> float:
  """The most bytes of a cache now: its `limit`, and a quarter of what the disk has.

  What the disk has is its free space and the cache itself.
  """
  most, place = limit(name), folder(name)
  there = next((p for p in (place, *place.parents) if p.exists()), None)
  if not most or there is None:
    return most
  with contextlib.suppress(OSError):
    most = min(most, (shutil.disk_usage(there).free + size(place)) / 4)
  return most


def size(place: pathlib.Path) -> int:
  """Bytes of all files below a directory; 0 if there is none."""
  return sum(found for _, found, _ in _files(place))


def write(path: pathlib.Path, save: Callable) -> bool:
  """Writes a file so that it appears whole or not at all; whether it was written.

  Args:
    path: of the file; its directory is made if need be.
    save: writes to a path that it is given.
  """
  new = None
  try:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, new = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    os.close(handle)
    save(new)
    os.replace(new, path)
    return True
  except Exception:  # a full disk, a directory that is not writable, ...
    if new:
      pathlib.Path(new).unlink(missing_ok=True)
    return False


def used(path: pathlib.Path):
  """Notes that a file was used now."""
  with contextlib.suppress(OSError):
    os.utime(path)


def drop(place: pathlib.Path, most: float, since: float | None = None) -> int:
  """Drops the files that were used longest ago until a directory is within its limit.

  Args:
    place: the directory.
    most: its limit in bytes.
    since: a time; files that were used later are not dropped. None drops any.
  Returns:
    the bytes of the files that are left.
  """
  now, files = time.time(), []
  for last, length, path in _files(place):
    if path.name.startswith(".new-"):
      if now - last > _STALE_S:
        path.unlink(missing_ok=True)
    else:
      files.append((last, length, path))
  total = sum(length for _, length, _ in files)
  if total <= most:
    return total
  for last, length, path in sorted(files):
    if total <= _FILL * most or (since is not None and last >= since):
      break
    with contextlib.suppress(OSError):
      path.unlink()
      total -= length
  return total


def _files(place: pathlib.Path) -> list[tuple[float, int, pathlib.Path]]:
  """(time of the last use, bytes, path) of all files below a directory."""
  found = []
  for parent, _, names in os.walk(place):
    for name in names:
      path = pathlib.Path(parent, name)
      with contextlib.suppress(OSError):  # another process may have dropped it
        status = path.stat()
        found.append((status.st_mtime, status.st_size, path))
  return found


def summary() -> list[str]:
  """Lines for `doctor`: place, size, limit and switch of every cache."""
  return [
    f"  {folder(name)}: {what}, {size(folder(name)) / 1e9:.2f} of at most "
    f"{allowed(name) / 1e9:.1f} GB ({_VARIABLES[name]})"
    for name, (_, what) in CACHES.items()
  ]
