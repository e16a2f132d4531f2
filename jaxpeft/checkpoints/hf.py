"""Reads Hugging Face model directories, one tensor at a time."""

import dataclasses
import functools
import math
import os
import pathlib
import re

import jax
import jax.numpy as jnp

from jaxpeft import console, optional
from jaxpeft.checkpoints import (
  bnb,
  gguf_config,
  gguf_file,
  hf_config,
  hf_read,
  json_file,
)
from jaxpeft.checkpoints.families import MULTIMODAL
from jaxpeft.checkpoints.gguf_reader import is_gguf
from jaxpeft.checkpoints.hf_names import SCORE, TOP, places
from jaxpeft.checkpoints.reader import (
  FLOATS,
  SafetensorsReader,
  TensorReader,
  text_only,
)
from jaxpeft.errors import InputError
from jaxpeft.parallel import sharding
from jaxpeft.quantization import nf4
from jaxpeft.transformer.config import ModelConfig

_BUFFERS = re.compile(r".*\.rotary_emb\.inv_freq")  # recomputed, not loaded
# A second copy of the weights, which would double the download, e.g. of Mistral.
_OTHER_COPIES = ["consolidated*.safetensors", "original/*"]


def hub_id(source: str) -> tuple[str, str | None] | None:
  """("org/name", revision or None) of a model source; None if it is no hub id."""
  if pathlib.Path(source).expanduser().is_dir() or is_gguf(source):
    return None
  found = re.fullmatch(r"(\w[\w.-]*/[\w.-]+)(?:@([\w./-]+))?", source)
  return found and (found[1], found[2])


def find(source: str) -> pathlib.Path:
  """The local directory or GGUF file of a model, downloaded if `source` is a hub id.

  Args:
    source: a path of a directory or of a .gguf file, "org/name" or "org/name@revision"
      (a branch, tag or commit).
  Raises:
    InputError: it is no directory, file or hub id; the directory holds several GGUF
      files; or the download failed.
  """
  path = pathlib.Path(source).expanduser()
  if source and path.is_dir():
    return _only_gguf(path) or path
  if is_gguf(source):
    if not path.is_file():
      raise InputError(f"model.source {source!r}: there is no such file")
    return path
  found = hub_id(source)
  if not source or found is None:
    raise InputError(
      f"model.source {source!r} is no directory, no .gguf file and no hub id "
      "org/name[@revision]"
    )
  need = f"{source} is not a local directory; to fetch it from the hub"
  huggingface_hub = optional.package("huggingface_hub", need, "hub")
  patterns = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja"]
  try:  # snapshot_download shows its own progress and honors HF_HUB_OFFLINE
    folder = huggingface_hub.snapshot_download(
      found[0], revision=found[1], allow_patterns=patterns,
      ignore_patterns=_OTHER_COPIES,
    )  # fmt: skip
    return pathlib.Path(folder)
  except Exception as e:
    reason = str(e).strip().split("\n")[0]
    raise InputError(
      f"model.source {source!r} is no directory, and its download failed: {reason}"
    ) from e


def _only_gguf(directory: pathlib.Path) -> pathlib.Path | None:
  """The GGUF file of a directory that holds nothing else of a model; None otherwise."""
  if (directory / "config.json").exists():
    return None
  files = sorted(path for path in directory.glob("*.gguf") if gguf_file.is_first(path))
  if len(files) > 1:
    names = ", ".join(path.name for path in files)
    raise InputError(f"{directory} holds several GGUF files, name one: {names}")
  return files[0] if files else None


def read_config(directory) -> ModelConfig:
  """The `ModelConfig` of a model directory or GGUF file.

  Raises:
    InputError: config.json is missing, damaged or not supported.
  """
  if is_gguf(directory):
    return config_of_gguf(gguf_file.read(directory))
  path = pathlib.Path(directory) / "config.json"
  if not path.is_file():
    raise InputError(f"no model in {directory}: {path.name} is missing")
  hf = json_file.read(path, f"the model in {directory}")
  config = hf_config.from_hf(hf, str(path))
  weights = any(path.parent.glob("*.safetensors*"))
  if hf["model_type"] in MULTIMODAL and weights:
    # Two configs may say whether the head is tied, and disagree. The weights decide.
    names = text_only(SafetensorsReader(path.parent)).shapes
    return dataclasses.replace(config, tied=TOP["head"] not in names)
  return config


def config_of_gguf(file: gguf_file.File) -> ModelConfig:
  """The `ModelConfig` of a GGUF file; raises like `read_config`."""
  return hf_config.from_hf(gguf_config.to_hf(file), file.place)


def load(
  reader: TensorReader,
  config: ModelConfig,
  dtype: str,
  groups: tuple[int, ...] = (),
  quantize: bool = False,
):
  """The parameters of a stored model, as `Transformer(config, groups)` names them.

  Those of a reward model have a "score", and no head for words.

  Args:
    reader: of tensors under Hugging Face's names.
    config: of the same model, see `read_config`.
    dtype: of all parameters.
    groups: number of layers in each scan; () is one scan over all.
    quantize: whether to quantize the projections to NF4, layer by layer.
  Raises:
    InputError: tensors are missing, unexpected or of a wrong shape (the first 20 are
      listed); files are damaged; or the weights are 4-bit and `quantize` is off.
  """
  reader = text_only(reader)
  score = SCORE in reader.shapes
  found = places(config, groups, score)
  wanted = {name for place in found.values() for name in place.tensors}
  have = {name for name in reader.shapes if not _BUFFERS.fullmatch(name)}
  packed = bnb.names(reader.shapes)
  if packed and not quantize:
    raise InputError(f"{reader.place} holds 4-bit weights: load it with quantize='nf4'")
  have -= {part for name in packed for part in bnb.parts(name)}
  if config.tied or score:
    have.discard(TOP["head"])  # some files hold a copy of the embedding
  problems = [f"missing {name}" for name in sorted(wanted - have)]
  problems += [f"unexpected {name}" for name in sorted(have - wanted)]
  problems += [
    f"{name} is {list(reader.shapes[name])}, not {list(place.whole)}"
    for place in found.values()
    for name in place.tensors
    if name in reader.shapes
    and name not in packed
    and reader.shapes[name] != place.whole
  ]
  problems += [
    f"{name} holds {reader.dtypes[name]}, not one of {', '.join(FLOATS)}"
    for name in sorted(wanted & reader.shapes.keys() - packed)
    if reader.dtypes[name] not in FLOATS
  ]
  if any(place.fused for place in found.values()) and packed:
    problems += ["fused projections cannot be read in 4 bits; load the 16-bit model"]
  if problems:
    more = f" and {len(problems) - 20} more" if len(problems) > 20 else ""
    raise InputError(f"{reader.place}: {'; '.join(problems[:20])}{more}")
  flat, on = {}, sharding.current()
  numbers = sum(math.prod(place.shape) for place in found.values())
  if jax.default_backend() == "cpu":
    _check_memory(
      reader.place, numbers * (0.5 if quantize else jnp.dtype(dtype).itemsize)
    )
  with console.Bar("reading weights", numbers, "numbers") as bar:
    for path, place in found.items():
      four_bits = quantize and nf4.takes(path)
      where = on and _sharding(path, place, four_bits, dtype, on)
      read = functools.partial(hf_read.read_nf4, path) if four_bits else hf_read.read
      flat[path] = read(place, reader, dtype, where)
      bar.update(math.prod(place.shape))
  return _nest(flat)


def _check_memory(place: str, size: float):
  """Refuses weights that are larger than this machine's memory."""
  have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  if size > have:
    raise InputError(
      f"the weights of {place} take {size / 1e9:.0f} GB, and this machine has "
      f"{have / 1e9:.0f} GB of memory; use model.quantize=nf4, or a smaller model"
    )


def _sharding(path: str, place, four_bits: bool, dtype: str, on):
  """The sharding of a leaf on a mesh; a tree of shardings for 4-bit weights."""
  leaf = jax.ShapeDtypeStruct(place.shape, jnp.dtype(dtype))
  if four_bits:
    leaf = jax.eval_shape(jax.vmap(nf4.quantize), leaf)
  return sharding.shardings({path: leaf}, on)[path]


def _nest(flat: dict) -> dict:
  """A nested dict from {path: leaf}."""
  nested: dict = {}
  for path, leaf in flat.items():
    node = nested
    *folders, name = path.split("/")
    for folder in folders:
      node = node.setdefault(folder, {})
    node[name] = leaf
  return nested
