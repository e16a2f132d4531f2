"""Reads the tensors of a GGUF file under Hugging Face's names, one at a time."""

import pathlib

import numpy as np

from jaxpeft.checkpoints import gguf_file, gguf_names
from jaxpeft.errors import InputError


def is_gguf(path) -> bool:
  """Whether a path names a GGUF file: by its suffix, and it is no directory."""
  path = pathlib.Path(path)
  return path.suffix.lower() == ".gguf" and not path.is_dir()


class GGUFReader:
  """A `TensorReader` of a GGUF file; tensors are dequantized to float32.

  What llama.cpp's converter changed is undone: the order of rows in q and k, norms
  stored as 1 + w, and experts stacked in one tensor. Tensors with unknown names keep
  them, so that `hf.load` reports them as unexpected.
  """

  def __init__(self, file: gguf_file.File):
    name, self._row = gguf_names.of_file(file.meta, file.place)
    self.place = file.place
    self.shapes: dict[str, tuple[int, ...]] = {}
    self._tensors: dict[str, gguf_file.Tensor] = {}
    heads = np.max(file.meta.get(f"{name}.attention.head_count", 1))
    self._heads = {
      "q_proj": int(heads),
      "k_proj": int(np.max(file.meta.get(f"{name}.attention.head_count_kv", heads))),
    }
    for stored, tensor in file.tensors.items():
      if stored in gguf_names.ROPE_TENSORS:
        continue
      name = gguf_names.to_hf(stored, self._row) or stored
      for hf_name, part in _experts(name, tensor):
        self.shapes[hf_name] = part.shape
        self._tensors[hf_name] = part
    self.dtypes = dict.fromkeys(self.shapes, "F32")

  def read(self, name: str) -> np.ndarray:
    """A whole tensor, float32."""
    return self.read_slice(name, ())

  def read_slice(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    """The part of a tensor at an index; only its rows are read and dequantized."""
    tensor = self._tensors[name]
    rows = index[0] if index else slice(None)
    order = self._order(name, tensor.shape[0])
    found = gguf_file.dequantize(tensor, rows if order is None else order[rows])
    if self._row.norm_plus_one and name.endswith("norm.weight"):
      found -= np.float32(1)
    return found[(slice(None), *index[1:])]

  def _order(self, name: str, rows: int) -> np.ndarray | None:
    """Where each row lies in the file; None if rows lie in order."""
    heads = self._heads.get(name.split(".")[-2])
    if not self._row.interleaved or heads is None:
      return None
    if rows % (2 * heads):
      raise InputError(f"{self.place}: {name} has {rows} rows for {heads} heads")
    return gguf_names.interleaved_rows(heads, rows)


def _experts(name: str, tensor: gguf_file.Tensor):
  """(name, tensor) of each expert in a stack; or of the tensor if it is no stack."""
  if "{}" not in name or len(tensor.shape) != 3:
    return [(name, tensor)]
  return [
    (name.format(i), gguf_file.Tensor(tensor.shape[1:], tensor.kind, tensor.data[i]))
    for i in range(tensor.shape[0])
  ]
