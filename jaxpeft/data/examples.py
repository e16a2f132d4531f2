"""Examples as flat arrays, in memory or mapped from files."""

import json
import pathlib
import zlib
from typing import NamedTuple

import numpy as np

from jaxpeft.data.lazy import Lazy
from jaxpeft.errors import InputError

_FILES = {"tokens": np.int32, "supervised": np.bool_}
_FILES |= {"offsets": np.int64, "values": np.float32}
_CHECKED = 2**30  # bytes; larger files are only checked if they were touched
_BLOCK = 2**22


class Example(NamedTuple):
  """The tokens of one text, and which of them the loss supervises."""

  tokens: np.ndarray  # int32[n]
  supervised: np.ndarray  # bool[n]; False at first, since nothing predicts it
  value: float = 0.0  # a number of the row, for an objective; see `pairs`


class Examples(Lazy):
  """A sequence of `Example`s, which are views of flat arrays.

  Attributes:
    tokens: int32[N], of all examples one after another.
    supervised: bool[N].
    offsets: int64[examples + 1]; example i is from offsets[i] to offsets[i + 1].
    values: float32[examples]; None is 0 for all.
  """

  def __init__(self, tokens, supervised, offsets, values=None):
    self.tokens, self.supervised, self.offsets = tokens, supervised, offsets
    self.values = np.zeros(len(self), np.float32) if values is None else values

  def __len__(self) -> int:
    return len(self.offsets) - 1

  def item(self, at: int):
    a, b = int(self.offsets[at]), int(self.offsets[at + 1])
    return Example(self.tokens[a:b], self.supervised[a:b], float(self.values[at]))

  @property
  def lengths(self) -> np.ndarray:
    """int32[examples]: the number of tokens of each."""
    out = np.empty(len(self), np.int32)  # without a copy in int64
    return np.subtract(self.offsets[1:], self.offsets[:-1], out, casting="unsafe")


class Counts(NamedTuple):
  """What a data set has, besides its examples."""

  tokens: int = 0
  supervised: int = 0
  truncated: int = 0  # examples longer than max_tokens, cut at the end
  dropped: int = 0  # examples without any supervised token, which are left out
  unanswered: int = 0  # conversations without a turn of the assistant
  silent: int = 0  # examples whose answers are blank
  ties: int = 0  # preferences between equal answers, which are left out
  long: int = 0  # preferences longer than max_tokens, which are left out
  longest: int = 0  # tokens of the longest example
  largest: int = 0  # the largest token id


class Memory:
  """Takes examples and holds them in memory."""

  def __init__(self):
    self._parts: list[list[np.ndarray]] = [[], [], [np.zeros(1, np.int64)], []]

  def add(self, arrays: tuple[np.ndarray, np.ndarray, np.ndarray], values=None):
    """Takes the tokens, the mask and the ends of some examples, counted from 0.

    Args:
      arrays: int32[n], bool[n] and int64[examples].
      values: float32[examples]; None is 0 for all.
    """
    for part, array in zip(self._parts, _with_values(arrays, values), strict=True):
      part.append(array)

  def finish(self, counts: Counts) -> Examples:
    """The examples."""
    return Examples(*map(np.concatenate, self._parts))


class Files:
  """Takes examples and writes them into the files of a directory."""

  def __init__(self, directory: pathlib.Path):
    self._directory = directory
    self._files = {name: open(directory / name, "wb") for name in _FILES}
    self._sums = dict.fromkeys(_FILES, 0)
    self._write("offsets", np.zeros(1, np.int64))

  def add(self, arrays: tuple[np.ndarray, np.ndarray, np.ndarray], values=None):
    """Takes what `Memory.add` does."""
    for name, array in zip(_FILES, _with_values(arrays, values), strict=True):
      self._write(name, array)

  def finish(self, counts: Counts) -> Examples:
    """The examples, mapped from the files."""
    about = {}
    for name, file in self._files.items():
      file.close()
      stat = (self._directory / name).stat()
      about[name] = [stat.st_size, self._sums[name], stat.st_mtime_ns]
    text = json.dumps(dict(files=about, counts=counts._asdict()))
    line = f"{text}\n{zlib.crc32(text.encode())}\n"
    (self._directory / "about.json").write_text(line)
    return _mapped(self._directory)

  def close(self):
    """Closes the files, if an error came before `finish`."""
    for file in self._files.values():
      file.close()

  def _write(self, name: str, array: np.ndarray):
    data = array.tobytes()
    self._sums[name] = zlib.crc32(data, self._sums[name])
    self._files[name].write(data)


def _with_values(arrays, values) -> tuple:
  values = np.zeros(len(arrays[2]), np.float32) if values is None else values
  return (*arrays, values)


def load(directory: pathlib.Path) -> tuple[Examples, Counts] | None:
  """What `Files` wrote into a directory; None if anything of it is damaged.

  The check of tokens in files over a gigabyte is left out while the files have not been
  touched since they were written.
  """
  try:
    text, checksum = (directory / "about.json").read_text().rstrip("\n").split("\n")
    if zlib.crc32(text.encode()) != int(checksum):
      return None
    about = json.loads(text)
    for name in _FILES:
      size, checksum, touched = about["files"][name]
      path = directory / name
      stat = path.stat()
      sure = size > _CHECKED and stat.st_mtime_ns == touched
      if stat.st_size != size or not (sure or _checksum(path) == checksum):
        return None
    return _mapped(directory), Counts(**about["counts"])
  except (OSError, ValueError, KeyError, TypeError):
    return None


def _mapped(directory: pathlib.Path) -> Examples:
  try:
    return Examples(
      *(
        np.asarray(np.memmap(directory / name, dtype, mode="r"))
        for name, dtype in _FILES.items()
      )
    )
  except OSError as e:
    raise InputError(f"cannot read the cached tokens in {directory}: {e}") from e


def _checksum(path: pathlib.Path) -> int:
  total = 0
  with open(path, "rb") as f:
    while block := f.read(_BLOCK):
      total = zlib.crc32(block, total)
  return total
