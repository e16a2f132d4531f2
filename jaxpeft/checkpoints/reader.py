"""Tensors by name from files: the interface, and safetensors behind it."""

import json
import pathlib
from typing import Protocol

import numpy as np
import safetensors

from jaxpeft.errors import InputError


class TensorReader(Protocol):
  """Named tensors, read one at a time.

  Attributes:
    place: the path of the file or directory, for error messages.
    shapes: {name: shape} of every tensor.
  """

  place: str
  shapes: dict[str, tuple[int, ...]]

  def read(self, name: str) -> np.ndarray:
    """A whole tensor."""
    ...

  def read_slice(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    """The part of a tensor at an index; no more of the file is read."""
    ...


class SafetensorsReader:
  """The tensors of a model directory: model.safetensors, or shards with an index.

  Raises:
    InputError: from the constructor, if there are no such files or one is damaged.
  """

  def __init__(self, directory):
    directory = pathlib.Path(directory)
    self.place = str(directory)
    self.shapes: dict[str, tuple[int, ...]] = {}
    self._files: dict[str, pathlib.Path] = {}
    for path in _files(directory):
      try:
        with safetensors.safe_open(path, "numpy") as f:
          for name in f.keys():
            self.shapes[name] = tuple(f.get_slice(name).get_shape())
            self._files[name] = path
      except (OSError, safetensors.SafetensorError) as e:
        raise InputError(f"cannot read {path}: {e}") from e

  def read(self, name: str) -> np.ndarray:
    """A whole tensor."""
    with safetensors.safe_open(self._files[name], "numpy") as f:
      return f.get_tensor(name)

  def read_slice(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    """The part of a tensor at an index; no more of the file is read."""
    with safetensors.safe_open(self._files[name], "numpy") as f:
      return f.get_slice(name)[index]


class _Renamed:
  """A reader's tensors under other names; those without a new name are left out."""

  def __init__(self, reader: TensorReader, old: dict[str, str]):
    self._reader, self._old, self.place = reader, old, reader.place
    self.shapes = {new: reader.shapes[name] for new, name in old.items()}

  def read(self, name: str) -> np.ndarray:
    """A whole tensor."""
    return self._reader.read(self._old[name])

  def read_slice(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    """The part of a tensor at an index."""
    return self._reader.read_slice(self._old[name], index)


# What the names of the language model begin with in models of text and images, and what
# they begin with alone.
_TEXT = {
  "language_model.model.": "model.",
  "language_model.lm_head.": "lm_head.",
  "model.language_model.": "model.",
}


def text_only(reader: TensorReader) -> TensorReader:
  """The tensors of the language model of a model of text and images; else the reader.

  The tensors of the part that sees images are left out.
  """
  old = {}
  for name in reader.shapes:
    for prefix, new in _TEXT.items():
      if name.startswith(prefix):
        old[new + name.removeprefix(prefix)] = name
  if not old:
    return reader
  head = {name: name for name in reader.shapes if name.startswith("lm_head.")}
  return _Renamed(reader, head | old)


def _files(directory: pathlib.Path) -> list[pathlib.Path]:
  """The safetensors files of a model directory."""
  index = directory / "model.safetensors.index.json"
  if index.exists():
    try:
      names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
      return [directory / name for name in names]
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as e:
      raise InputError(f"{index} is no index of shards: {e}") from e
  one = directory / "model.safetensors"
  paths = [one] if one.exists() else sorted(directory.glob("*.safetensors"))
  if not paths:
    raise InputError(f"no .safetensors in {directory}; other formats are not read")
  return paths
