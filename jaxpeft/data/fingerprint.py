"""Hashes of what tokens are made from: files, a tokenizer, and this package itself."""

import functools
import hashlib
import json
import os
import pathlib

from jaxpeft.caches import disk
from jaxpeft.errors import InputError

_BLOCK = 2**20
_HUGE = 64 * 2**20  # bytes of a file whose hash is remembered while it stays unchanged


def of_files(paths) -> str:
  """The hash of the content of files, in their order.

  Raises:
    InputError: a file cannot be read.
  """
  total = hashlib.sha256()
  for path in paths:
    try:
      total.update(_of_file(pathlib.Path(path)))
    except OSError as e:
      raise InputError(f"cannot read the data file {str(path)!r}: {e}") from e
  return total.hexdigest()


def of_tokenizer(tokenizer) -> str:
  """The hash of everything of a `Tokenizer` that decides about tokens and masks."""
  import tokenizers

  parts = (
    tokenizer.core.to_str(), tokenizer.add_bos, tokenizer.bos_id, tokenizer.eos_ids,
    tokenizer.chat_template, tokenizer.tool_template, sorted(tokenizer.special.items()),
    tokenizers.__version__,
  )  # fmt: skip
  return hashlib.sha256(repr(parts).encode()).hexdigest()


@functools.cache
def of_code() -> str:
  """The hash of this package's source: a change of it may change tokens."""
  total = hashlib.sha256()
  for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
    total.update(path.name.encode() + b"\0" + path.read_bytes())
  return total.hexdigest()


def _of_file(path: pathlib.Path) -> bytes:
  stat = path.stat()
  if stat.st_size < _HUGE:
    return hashlib.sha256(path.read_bytes()).digest()
  about = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino]
  name = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]
  memo = disk.folder("data") / "hashes" / name
  try:
    return bytes.fromhex(memo.read_text())
  except (OSError, ValueError):
    pass
  total = hashlib.sha256()
  with open(path, "rb") as f:
    while block := f.read(_BLOCK):
      total.update(block)
  try:
    memo.parent.mkdir(parents=True, exist_ok=True)
    temporary = memo.with_suffix(f".{os.getpid()}")
    temporary.write_text(total.hexdigest())
    temporary.replace(memo)
  except OSError:
    pass  # it is only faster with it
  return total.digest()
