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
    shapes: {name: shape} of every tensor.
  """

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

  def __init__(self, directory: pathlib.Path):
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


def _files(directory: pathlib.Path) -> list[pathlib.Path]:
  """The safetensors files of a model directory."""
  index = directory / "model.safetensors.index.json"
  if index.exists():
    try:
      names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as e:
      raise InputError(f"{index} is no index of shards: {e}") from e
    return [directory / name for name in names]
  one = directory / "model.safetensors"
  paths = [one] if one.exists() else sorted(directory.glob("*.safetensors"))
  if not paths:
    raise InputError(f"no .safetensors in {directory}; other formats are not read")
  return paths
