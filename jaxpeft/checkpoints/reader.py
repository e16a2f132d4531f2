"""Tensors by name from files: the interface, and safetensors behind it."""

import pathlib
from typing import Protocol

import numpy as np
import safetensors

from jaxpeft.checkpoints import json_file
from jaxpeft.errors import InputError

FLOATS = ("F64", "F32", "F16", "BF16")  # dtypes of weights, as safetensors names them


class TensorReader(Protocol):
  """Named tensors, read one at a time.

  Attributes:
    place: the path of the file or directory, for error messages.
    shapes: {name: shape} of every tensor.
    dtypes: {name: dtype} of every tensor, as safetensors names them, e.g. "BF16".
  """

  place: str
  shapes: dict[str, tuple[int, ...]]
  dtypes: dict[str, str]

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
    self.dtypes: dict[str, str] = {}
    self._files: dict[str, pathlib.Path] = {}
    for path in _files(directory):
      try:
        with safetensors.safe_open(path, "numpy") as f:
          for name in f.keys():
            part = f.get_slice(name)
            self.shapes[name] = tuple(part.get_shape())
            self.dtypes[name] = part.get_dtype()
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
    self.dtypes = {new: reader.dtypes[name] for new, name in old.items()}

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
    found = json_file.read(index, f"the model in {directory}").get("weight_map")
    names = set(_names(found).values())
    if not names:
      raise InputError(f"{index} is no index of shards: it maps no tensors to files")
    return [directory / name for name in sorted(names)]
  one = directory / "model.safetensors"
  paths = [one] if one.exists() else sorted(directory.glob("*.safetensors"))
  if not paths:
    raise InputError(f"no .safetensors in {directory}; other formats are not read")
  return paths


def _names(value) -> dict[str, str]:
  """`value` if it is {tensor: name of a file in the same directory}, otherwise {}."""
  if not isinstance(value, dict):
    return {}
  good = (
    isinstance(x, str) and x and x.isprintable() and pathlib.PurePath(x).name == x
    for x in value.values()
  )
  return value if all(good) else {}
