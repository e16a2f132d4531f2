"""Writes GGUF files, one tensor at a time, as llama.cpp's converter would."""

import dataclasses
import math
import pathlib
from typing import Any

import numpy as np

from jaxpeft import temporary
from jaxpeft.checkpoints import (
  gguf_config,
  gguf_file,
  gguf_names,
  gguf_rope,
  gguf_vocabulary,
  hf_config,
)
from jaxpeft.checkpoints.reader import TensorReader
from jaxpeft.errors import InputError, unknown
from jaxpeft.parallel import distributed
from jaxpeft.transformer.config import ModelConfig

# dtype of an export -> block format of matrices.
KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
_FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
_ALWAYS_F32 = (
  "ffn_gate_inp",
)  # the router of experts, besides everything with one axis


def write(
  path,
  config: ModelConfig,
  reader: TensorReader,
  tokenizer,
  dtype: str = "bfloat16",
  name: str = "",
):
  """Writes a model as one GGUF file. The file is read back, and its config compared.

  If there are several processes, all must call this, and process 0 writes.

  Args:
    path: of the file; it is replaced.
    config: of the model.
    reader: of its weights, under Hugging Face's names.
    tokenizer: a `Tokenizer`.
    dtype: a key of `KINDS`. Norms and biases are always float32, and matrices whose
      rows "q8_0" does not divide are float16.
    name: of the model, for the metadata.
  Raises:
    InputError: an unknown dtype, or a model or tokenizer that GGUF cannot hold.
  """
  if dtype not in KINDS:
    raise unknown("dtype of a GGUF file", dtype, KINDS)
  gguf_file.package()  # if it is missing, the error comes before anything is read
  arch, row = gguf_names.of_family(config.family)
  parts: dict[str, list[str]] = {}
  for theirs in reader.shapes:
    ours, _ = gguf_names.to_gguf(theirs, row)
    parts.setdefault(ours, []).append(theirs)  # experts come in their order
  meta: dict[str, Any] = {
    "general.type": "model",
    "general.name": name or config.family,
    "general.file_type": _FILE_TYPES[KINDS[dtype]],
    "general.quantization_version": 2,
  }
  meta |= gguf_config.from_config(config)
  meta |= gguf_vocabulary.metadata(tokenizer, config, arch)
  if not distributed.is_main():
    for theirs in (x for names in parts.values() for x in names):
      reader.read(theirs)
    return distributed.barrier("written")
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  try:
    with temporary.directory(path.parent, ".save-") as tmp:
      _write_file(tmp / path.name, config, reader, meta, parts, KINDS[dtype])
      _check(tmp / path.name, config)
      (tmp / path.name).replace(path)
  finally:
    distributed.barrier("written")


def _write_file(file: pathlib.Path, config, reader, meta: dict, parts: dict, kind: str):
  """Writes the metadata, the tables of RoPE and every tensor."""
  gguf = gguf_file.package()
  arch, row = gguf_names.of_family(config.family)
  writer = gguf.GGUFWriter(file, arch)
  for key, value in meta.items():
    _add(writer, key, value)
  tables = gguf_rope.tables(config)
  for key, table in tables.items():
    writer.add_tensor_info(
      key, table.shape, table.dtype, table.nbytes, gguf.GGMLQuantizationType.F32
    )
  kinds = {}
  for ours, names in parts.items():
    shape = reader.shapes[names[0]]
    shape = shape if len(names) == 1 else (len(names), *shape)
    kinds[ours] = _kind(ours, shape, kind)
    block, size = gguf.GGML_QUANT_SIZES[kinds[ours]]
    writer.add_tensor_info(
      ours, shape, np.dtype(np.float32), math.prod(shape) // block * size, kinds[ours]
    )
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_ti_data_to_file()
  for table in tables.values():
    writer.write_tensor_data(table)
  heads = {"q_proj": config.heads, "k_proj": config.kv_heads}
  for ours, names in parts.items():
    w = [_arranged(theirs, reader.read(theirs), row, heads) for theirs in names]
    w = w[0] if len(w) == 1 else np.stack(w)
    writer.write_tensor_data(gguf.quants.quantize(w, kinds[ours]))
  writer.close()


def _arranged(name: str, w: np.ndarray, row, heads: dict[str, int]) -> np.ndarray:
  """A weight as llama.cpp's converter changes it; `GGUFReader` undoes this."""
  if row.norm_plus_one and name.endswith("norm.weight"):
    return w + np.float32(1)
  count = heads.get(name.split(".")[-2])
  if not row.interleaved or count is None:
    return w
  return w[np.argsort(gguf_names.interleaved_rows(count, len(w)))]


def _kind(name: str, shape: tuple[int, ...], kind: str):
  """The block format of a tensor."""
  gguf = gguf_file.package()
  if len(shape) == 1 or any(part in name for part in _ALWAYS_F32):
    return gguf.GGMLQuantizationType.F32
  found = gguf.GGMLQuantizationType[kind]
  divides = shape[-1] % gguf.GGML_QUANT_SIZES[found][0] == 0
  return found if divides else gguf.GGMLQuantizationType.F16


def _add(writer, key: str, value):
  """Adds one entry of the metadata, of the type that llama.cpp expects."""
  if isinstance(value, bool):
    writer.add_bool(key, value)
  elif isinstance(value, int):
    writer.add_uint32(key, value)
  elif isinstance(value, float):
    writer.add_float32(key, value)
  elif isinstance(value, str):
    writer.add_string(key, value)
  else:
    writer.add_array(key, value)


def _check(path, config: ModelConfig):
  """Refuses a model whose config the written file does not give back."""
  file = gguf_file.read(path)
  found = hf_config.from_hf(gguf_config.to_hf(file), str(path))
  kept = {k: getattr(config, k) for k in ("family", "bos_id", "eos_ids", "pad_id")}
  found = dataclasses.replace(found, **kept)
  for field in dataclasses.fields(config):
    ours, read = getattr(config, field.name), getattr(found, field.name)
    if not _same(ours, read):
      raise InputError(
        f"a GGUF file cannot hold this {config.family} model: {field.name} is {ours}, "
        f"and would be read as {read}"
      )


def _same(a, b) -> bool:
  """Whether two values are equal, numbers to the precision of float32."""
  if isinstance(a, float) and isinstance(b, float | int):
    return math.isclose(a, b, rel_tol=1e-6)
  if isinstance(a, tuple) and isinstance(b, tuple):
    return len(a) == len(b) and all(map(_same, a, b))
  if dataclasses.is_dataclass(a) and dataclasses.is_dataclass(b):
    return _same(dataclasses.astuple(a), dataclasses.astuple(b))  # type: ignore[arg-type]
  return a == b
