"""Keeps compiled programs on disk, so that the second start of a run compiles nothing.

This is JAX's persistent compilation cache with other files below it: JAX's own are
neither written at once nor replaced if they are damaged, and need a lock to be bounded.
"""

import functools
import hashlib
import os
import pathlib
import platform

from jaxpeft.caches import disk

_DIGEST = 32  # bytes of the checksum that begins a file


def enable() -> pathlib.Path | None:
  """Turns the cache on, and returns its directory; None if it is off.

  A directory that the user gave JAX (JAX_COMPILATION_CACHE_DIR) is left to JAX. It is
  off if JAXPEFT_COMPILED_CACHE_GB is 0, or if its directory cannot be written or can be
  written by others: compiled programs are code.

  Raises:
    InputError: JAXPEFT_COMPILED_CACHE_GB is no number.
  """
  import jax  # here, so that doctor and help need not wait for it

  own = jax.config.values["jax_compilation_cache_dir"]
  if own:
    return pathlib.Path(own)
  most, place = disk.limit("compiled"), disk.folder("compiled")
  if not most or not _is_ours(place):
    return None
  try:
    from jax._src import compilation_cache
    from jax._src.compilation_cache_interface import CacheInterface

    if not hasattr(compilation_cache, "_cache_initialized"):
      raise ImportError("JAX has changed")
  except ImportError:
    pass  # JAX's own files serve, too
  else:

    class Files(_Files, CacheInterface):
      pass

    compilation_cache._cache = Files(place, most)
    compilation_cache._cache_initialized = True
  jax.config.update("jax_compilation_cache_dir", str(place))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  return place


def _is_ours(place: pathlib.Path) -> bool:
  """Whether only this user can write to a directory, which is made if need be."""
  try:
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = place.stat()
    mine = status.st_uid == os.getuid() and not status.st_mode & 0o022
    return mine and os.access(place, os.W_OK)
  except OSError:
    return False


class _Files:
  """What JAX asks of a cache: get and put by key."""

  def __init__(self, place: pathlib.Path, most: float):
    self._path = place  # JAX reads this name
    self._most = most
    self._bytes = disk.drop(place, most)

  def get(self, key: str) -> bytes | None:
    """The value of a key; None if there is none, or a damaged one."""
    path = self._file(key)
    try:
      found = path.read_bytes()
    except OSError:
      return None
    digest, value = found[:_DIGEST], found[_DIGEST:]
    if hashlib.sha256(value).digest() != digest:
      return None  # damaged; `put` replaces it
    disk.used(path)
    return value

  def put(self, key: str, value: bytes) -> None:
    """Keeps a value; does nothing if it cannot be written or is larger than all."""
    whole = hashlib.sha256(value).digest() + value
    if len(whole) > self._most:
      return

    def save(path):
      pathlib.Path(path).write_bytes(whole)

    if disk.write(self._file(key), save):
      self._bytes += len(whole)
      if self._bytes > self._most:
        self._bytes = disk.drop(self._path, self._most)

  def _file(self, key: str) -> pathlib.Path:
    return self._path / f"{_machine()}-{hashlib.sha256(key.encode()).hexdigest()[:40]}"


@functools.cache
def _machine() -> str:
  """A hash of the processor: what is compiled for one may not run on another."""
  about = [platform.machine(), platform.processor(), str(_cores())]
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = ("flags", "Features", "model name", "CPU part")
    about += sorted({line for line in lines if line.split("\t")[0].strip() in names})
  except OSError:
    pass  # other systems
  return hashlib.sha256("\n".join(about).encode()).hexdigest()[:8]


def _cores() -> int:
  """Cores that this process may use: XLA splits the work of a program for them."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
