"""Reads Hugging Face model directories, one tensor at a time."""

import functools
import json
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import tqdm

from jaxpeft.checkpoints import bnb, hf_config, hf_read
from jaxpeft.checkpoints.hf_names import TOP, places
from jaxpeft.checkpoints.reader import SafetensorsReader
from jaxpeft.errors import InputError
from jaxpeft.parallel import sharding
from jaxpeft.quantization import nf4
from jaxpeft.transformer.config import ModelConfig

_BUFFERS = re.compile(r".*\.rotary_emb\.inv_freq")  # recomputed, not loaded
# A second copy of the weights, which would double the download, e.g. of Mistral.
_OTHER_COPIES = ["consolidated*.safetensors", "original/*"]


def hub_id(source: str) -> tuple[str, str | None] | None:
  """("org/name", revision or None) of a model source; None if it is no hub id."""
  if pathlib.Path(source).expanduser().is_dir():
    return None
  found = re.fullmatch(r"(\w[\w.-]*/[\w.-]+)(?:@([\w./-]+))?", source)
  return found and (found[1], found[2])


def find(source: str) -> pathlib.Path:
  """The local directory of a model, downloaded from the hub if `source` is a hub id.

  Args:
    source: a path, "org/name" or "org/name@revision" (a branch, tag or commit).
  Raises:
    InputError: it is neither a directory nor a hub id, or the download failed.
  """
  path = pathlib.Path(source).expanduser()
  if source and path.is_dir():
    return path
  found = hub_id(source)
  if not source or found is None:
    raise InputError(
      f"model.source {source!r} is neither a directory nor a hub id org/name[@revision]"
    )
  try:
    import huggingface_hub
  except ImportError as e:
    raise InputError(
      f"{source} is not a local directory; to fetch it from the hub, "
      "pip install -e '.[hub]'"
    ) from e
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


def read_config(directory) -> ModelConfig:
  """The `ModelConfig` of a model directory.

  Raises:
    InputError: config.json is missing, damaged or not supported.
  """
  path = pathlib.Path(directory) / "config.json"
  try:
    return hf_config.from_hf(json.loads(path.read_text()), str(path))
  except OSError as e:
    raise InputError(f"no model in {directory}: {path.name} is missing") from e
  except json.JSONDecodeError as e:
    raise InputError(f"{path} is not JSON: {e}") from e


def load(
  directory,
  config: ModelConfig,
  dtype: str,
  groups: tuple[int, ...] = (),
  quantize: bool = False,
):
  """The parameters of a model directory, as `Transformer(config, groups)` names them.

  Args:
    directory: with model.safetensors, or shards and their index.
    config: from `read_config`.
    dtype: of all parameters.
    groups: number of layers in each scan; () is one scan over all.
    quantize: whether to quantize the projections to NF4, layer by layer.
  Raises:
    InputError: tensors are missing, unexpected or of a wrong shape (the first 20 are
      listed); files are damaged; or the weights are 4-bit and `quantize` is off.
  """
  directory = pathlib.Path(directory)
  found = places(config, groups)
  reader = SafetensorsReader(directory)
  wanted = {name for place in found.values() for name in place.tensors}
  have = {name for name in reader.shapes if not _BUFFERS.fullmatch(name)}
  packed = bnb.names(reader.shapes)
  if packed and not quantize:
    raise InputError(f"{directory} holds 4-bit weights: load it with quantize='nf4'")
  have -= {part for name in packed for part in bnb.parts(name)}
  if config.tied:
    have.discard(TOP["head"])  # some files hold a copy of the embedding
  problems = [f"missing {name}" for name in sorted(wanted - have)]
  problems += [f"unexpected {name}" for name in sorted(have - wanted)]
  problems += [
    f"{name} is {list(reader.shapes[name])}, not {list(place.theirs)}"
    for place in found.values()
    for name in place.tensors
    if name in reader.shapes
    and name not in packed
    and reader.shapes[name] != place.theirs
  ]
  if problems:
    more = f" and {len(problems) - 20} more" if len(problems) > 20 else ""
    raise InputError(f"{directory}: {'; '.join(problems[:20])}{more}")
  flat, on = {}, sharding.current()
  numbers = sum(math.prod(place.shape) for place in found.values())
  with tqdm.tqdm(
    total=numbers, desc="read weights", unit="", unit_scale=True, delay=3, leave=False,
    disable=None,
  ) as bar:  # fmt: skip
    for path, place in found.items():
      four_bits = quantize and nf4.takes(path)
      where = on and _sharding(path, place, four_bits, dtype, on)
      read = functools.partial(hf_read.read_nf4, path) if four_bits else hf_read.read
      flat[path] = read(place, reader, dtype, where)
      bar.update(math.prod(place.shape))
  return _nest(flat)


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
