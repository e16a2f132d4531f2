"""JSON files, which others may have written or damaged, and checksums."""

import json
import pathlib
import zlib

from jaxpeft.errors import InputError

MAX_BYTES = 64 * 2**20  # an index of a model of 1,000 experts has 10 MB


def read(path: pathlib.Path, what: str) -> dict:
  """The JSON object in a file.

  Args:
    path: of the file.
    what: what cannot be read without it, for the message, e.g. "the model in DIR".
  Raises:
    InputError: it is missing, longer than `MAX_BYTES`, damaged, or no object.
  """
  try:
    size = path.stat().st_size
    if size > MAX_BYTES:
      raise ValueError(f"it has {size} bytes, over {MAX_BYTES}")
    value = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError as e:
    raise InputError(f"cannot read {what}: there is no {path}") from e
  except (OSError, ValueError, RecursionError) as e:
    # ValueError: not JSON, not UTF-8, a number of over 4300 digits, a path with NUL.
    reason = str(e).split("\n")[0][:200]
    raise InputError(f"cannot read {what}: {str(path)!r}: {reason}") from e
  if not isinstance(value, dict):
    kind = type(value).__name__
    raise InputError(f"cannot read {what}: {path} holds a {kind}, no JSON object")
  return value


def crc32(value) -> int:
  """The checksum of a JSON value, whatever the order of its keys and its spaces."""
  read = json.loads(json.dumps(value))  # JSON turns all keys into strings
  return zlib.crc32(json.dumps(read, sort_keys=True).encode())


def crc32_of_file(path: pathlib.Path) -> int:
  """The checksum of a file's bytes."""
  found = 0
  with path.open("rb") as f:
    while part := f.read(2**22):
      found = zlib.crc32(part, found)
  return found
