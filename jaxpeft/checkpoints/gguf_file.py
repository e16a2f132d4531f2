"""Parses GGUF files: metadata, and where each tensor lies. Nothing here knows a model.

The parser is our own because files come from strangers: every count and length is
checked against the bytes that are left before anything is allocated. Only the block
formats are the `gguf` package's. Source: the GGUF specification, ggml/docs/gguf.md.
"""

import math
import pathlib
import re
import struct
from typing import Any, NamedTuple

import numpy as np

from jaxpeft import optional
from jaxpeft.errors import InputError

_VERSIONS = (2, 3)
_ALIGNMENT = 32  # bytes, unless general.alignment says otherwise
_STRING, _ARRAY = 8, 9
# Number of a metadata type -> NumPy's name of it; strings and arrays are apart.
_SCALARS = {
  0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?",
  10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_MAX_DIMS = 4
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_CHUNK = 1 << 22  # numbers that are dequantized at once


def package():
  """The `gguf` package, which knows the block formats.

  Raises:
    InputError: it is not installed.
  """
  return optional.package("gguf", "a GGUF file needs", "gguf")


class Tensor(NamedTuple):
  """A tensor as it is stored.

  Attributes:
    shape: its shape, outermost axis first.
    kind: the block format, e.g. "F32" or "Q4_1".
    data: uint8[..., bytes of a row], mapped from the file and read when it is used.
  """

  shape: tuple[int, ...]
  kind: str
  data: np.ndarray


class File(NamedTuple):
  """A parsed GGUF file, or the parts of a split one.

  Attributes:
    place: its path.
    meta: {key: value}. Arrays of numbers are NumPy arrays; float32 values are rounded
      to the shortest decimal that gives the same float32, e.g. 1e-05.
    tensors: {name: `Tensor`}, in llama.cpp's names.
  """

  place: str
  meta: dict[str, Any]
  tensors: dict[str, Tensor]


def read(path) -> File:
  """The metadata and tensors of a GGUF file, and of its other parts if it is split.

  Args:
    path: of the file; of a split file, any of its parts.
  Raises:
    InputError: it cannot be read, is damaged, or needs what is not supported.
  """
  path = pathlib.Path(path)
  part = _PART.fullmatch(path.name)
  if part is None:
    return _read(path)
  stem, count = part[1], int(part[3])
  names = [f"{stem}-{i:05}-of-{part[3]}.gguf" for i in range(1, count + 1)]
  missing = [name for name in names if not path.with_name(name).is_file()]
  if missing:
    raise InputError(f"{path} is one of {count} parts; missing: {missing[0]}")
  files = [_read(path.with_name(name)) for name in names]
  tensors: dict[str, Tensor] = {}
  for file in files:
    twice = tensors.keys() & file.tensors.keys()
    if twice:
      raise InputError(f"{file.place}: another part holds {min(twice)}, too")
    tensors |= file.tensors
  total = value(files[0].meta, "split.tensors.count", int, str(path), len(tensors))
  if total != len(tensors):
    raise InputError(f"{path}: the parts hold {len(tensors)} tensors, not {total}")
  return File(str(path), files[0].meta, tensors)


def value(meta: dict, key: str, kinds, place: str, default: Any = None) -> Any:
  """A value of the metadata.

  Args:
    meta: of a file.
    key: its key.
    kinds: type or tuple of types that it must have; bool counts as int only if named.
    place: path of the file, for error messages.
    default: given back if the key is missing.
  Raises:
    InputError: it has another type.
  """
  if key not in meta:
    return default
  found = meta[key]
  kinds = kinds if isinstance(kinds, tuple) else (kinds,)
  if not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds):
    shown = repr(found)[:60].replace("\n", " ")
    names = " or ".join(kind.__name__ for kind in kinds)
    raise InputError(f"{place}: {key} is {shown}, but must be of type {names}")
  return found


def is_first(path: pathlib.Path) -> bool:
  """Whether a file is whole, or the first part of a split one, by its name."""
  part = _PART.fullmatch(path.name)
  return part is None or int(part[2]) == 1


def dequantize(tensor: Tensor, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
  """The numbers of a tensor in float32; bit for bit those of the `gguf` package.

  Args:
    tensor: as it is stored.
    rows: which rows of the first axis; a slice, or int[n].
  """
  gguf = package()
  kind = gguf.GGMLQuantizationType[tensor.kind]
  part = tensor.data if tensor.data.ndim > 1 else tensor.data[None]
  part = part[rows] if tensor.data.ndim > 1 else part
  shape = (*part.shape[:-1], tensor.shape[-1])
  flat = part.reshape(-1, part.shape[-1])
  out = np.empty((len(flat), shape[-1]), np.float32)
  step = max(1, _CHUNK // shape[-1])
  for start in range(0, len(flat), step):
    block = np.ascontiguousarray(flat[start : start + step])
    out[start : start + step] = gguf.quants.dequantize(block, kind)
  return out.reshape(shape) if tensor.data.ndim > 1 else out[0][rows]


class _Cursor:
  """Reads values one after the other, never past the end of the file."""

  def __init__(self, data: np.ndarray, place: str):
    self.data, self.place, self.at = data, place, 0

  def take(self, size: int) -> bytes:
    self.need(size)
    self.at += size
    return self.data[self.at - size : self.at].tobytes()

  def need(self, size: int):
    if size > len(self.data) - self.at:
      raise InputError(
        f"{self.place} is damaged or cut off: at byte {self.at} it needs {size} more "
        f"bytes of {len(self.data)}"
      )

  def number(self, code: str) -> int:
    return struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0]

  def text(self) -> str:
    raw = self.take(self.number("Q"))
    try:
      return raw.decode()
    except UnicodeDecodeError as e:
      raise InputError(f"{self.place}: the text at byte {self.at} is no UTF-8") from e

  def value(self, kind: int, key: str):
    """A metadata value of a numbered type."""
    if kind == _STRING:
      return self.text()
    if kind == _ARRAY:
      inner, count = self.number("I"), self.number("Q")
      if inner == _STRING:
        self.need(8 * count)  # each string has a length of 8 bytes
        return [self.text() for _ in range(count)]
      return self.numbers(inner, count, key)
    return self.numbers(kind, 1, key)[0].item()

  def numbers(self, kind: int, count: int, key: str) -> np.ndarray:
    if kind not in _SCALARS:
      raise InputError(f"{self.place}: {key!r} has the unknown type {kind}")
    dtype = np.dtype(_SCALARS[kind])
    self.need(count * dtype.itemsize)
    end = self.at + count * dtype.itemsize
    found = self.data[self.at : end].view(dtype)
    self.at = end
    if dtype == np.dtype("<f4") and count == 1:
      return np.array([float(str(found[0]))])
    return found


def _read(path: pathlib.Path) -> File:
  try:
    data = np.memmap(path, np.uint8, "r")
  except (OSError, ValueError) as e:  # ValueError: an empty file
    raise InputError(f"cannot read {path}: {e}") from e
  cursor = _Cursor(data.view(np.ndarray), str(path))
  if cursor.take(4) != b"GGUF":
    raise InputError(f"{path} is no GGUF file: it does not begin with 'GGUF'")
  version = cursor.number("I")
  if version & 0xFFFF == 0:
    raise InputError(f"{path} is a big-endian GGUF file; only little-endian is read")
  if version not in _VERSIONS:
    raise InputError(f"{path} has GGUF version {version}; supported: {_VERSIONS}")
  tensor_count, key_count = cursor.number("Q"), cursor.number("Q")
  cursor.need(13 * key_count + 24 * tensor_count)  # the least that each entry takes
  meta: dict[str, Any] = {}
  for _ in range(key_count):
    key = cursor.text()
    if key in meta:
      raise InputError(f"{path}: the metadata holds {key!r} twice")
    meta[key] = cursor.value(cursor.number("I"), key)
  entries = [_entry(cursor) for _ in range(tensor_count)]
  align = value(meta, "general.alignment", int, str(path), _ALIGNMENT)
  if align < 1 or align & (align - 1):
    raise InputError(f"{path}: general.alignment {align!r} is no power of two")
  start = -(-cursor.at // align) * align
  return File(str(path), meta, _tensors(cursor, entries, start))


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
  """(name, shape, number of the block format, offset) of one tensor."""
  name, count = cursor.text(), cursor.number("I")
  if not 1 <= count <= _MAX_DIMS:
    raise InputError(f"{cursor.place}: tensor {name!r} has {count} axes")
  shape = tuple(cursor.number("Q") for _ in range(count))[::-1]
  return name, shape, cursor.number("I"), cursor.number("Q")


def _tensors(cursor: _Cursor, entries, start: int) -> dict[str, Tensor]:
  """{name: `Tensor`} after checking that each lies in the file, apart from others."""
  gguf, place = package(), cursor.place
  found, end_of_last = {}, 0
  for name, shape, number, offset in sorted(entries, key=lambda e: e[3]):
    try:
      kind = gguf.GGMLQuantizationType(number)
      block, size = gguf.GGML_QUANT_SIZES[kind]
      gguf.quants.dequantize(np.zeros((1, size), np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError) as e:
      raise InputError(
        f"{place}: tensor {name!r} has block format {number}, which is not supported"
      ) from e
    if shape[-1] % block:
      raise InputError(
        f"{place}: tensor {name!r} has rows of {shape[-1]} numbers, no multiple of "
        f"{kind.name}'s {block}"
      )
    total = math.prod(shape) // block * size
    if name in found or not total or offset < end_of_last:
      raise InputError(f"{place} is damaged: {name!r} is empty, doubled or overlaps")
    if start + offset + total > len(cursor.data):
      raise InputError(
        f"{place} is damaged or cut off: tensor {name!r} ends at byte "
        f"{start + offset + total} of {len(cursor.data)}"
      )
    end_of_last = offset + total
    bytes_of_row = shape[-1] // block * size
    data = cursor.data[start + offset : start + end_of_last]
    found[name] = Tensor(shape, kind.name, data.reshape(*shape[:-1], bytes_of_row))
  return found
