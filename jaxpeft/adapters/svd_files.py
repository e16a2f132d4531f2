"""Exact singular value decompositions on disk, under the hash of the weight.

An entry is a safetensors file of u, s, vt and their checksum. Where the directory's
limit is reached, entries that this process has not used make room.
"""

import hashlib
import threading
import time
import zlib

import jax
import numpy as np
import safetensors.numpy

from jaxpeft.caches import disk

_NAMES = ("u", "s", "vt")
_started = time.time()
_lock = threading.Lock()
_room: dict = {}  # directory -> bytes that may still be written to it


def digest(w) -> str:
  """The name of a weight's entry; w is float[in, out]."""
  w = np.asarray(w)
  found = hashlib.sha256(f"svd-v2 {w.dtype} {w.shape} ".encode())
  found.update(np.ascontiguousarray(w).view(np.uint8).data)
  return found.hexdigest()


def read(digest: str):
  """(u, s, vt) of an entry; None if there is none, or after removing a damaged one."""
  path = disk.folder("svd") / f"{digest}.safetensors"
  if not disk.limit("svd") or not path.exists():
    return None
  try:
    found = safetensors.numpy.load_file(path)
    if int(found.pop("crc32")) == _crc32(found):
      disk.used(path)
      return tuple(jax.device_put(found[name]) for name in _NAMES)
  except Exception:  # the entry is damaged: compute it again
    pass
  path.unlink(missing_ok=True)
  return None


def write(digest: str, factors):
  """Keeps (u, s, vt) unless there is no room for them."""
  folder = disk.folder("svd")
  arrays: dict = dict(zip(_NAMES, map(np.asarray, factors), strict=True))
  need = sum(x.nbytes for x in arrays.values()) + 1000
  if not _take(folder, need):
    return
  arrays["crc32"] = np.array(_crc32(arrays), np.uint32)
  path = folder / f"{digest}.safetensors"
  disk.write(path, lambda new: safetensors.numpy.save_file(arrays, new))


def _take(folder, need: int) -> bool:
  """Whether `need` bytes may be written; makes room for them if possible."""
  with _lock:
    if _room.get(folder, 0) < need:
      most = disk.allowed("svd")
      left = disk.drop(folder, max(0, most - need), since=_started)
      _room[folder] = most - left
    if _room[folder] < need:
      return False
    _room[folder] -= need
    return True


def _crc32(arrays: dict) -> int:
  """The checksum of u, s and vt, by which a damaged entry is recognized."""
  value = 0
  for name in _NAMES:
    value = zlib.crc32(np.ascontiguousarray(arrays[name]).data, value)
  return value
