"""Hugging Face model directories in; each stacked leaf is filled in place."""

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
# The same weights under their authors' names, e.g. Mistral's: twice the download.
_OTHER_COPIES = ["consolidated*.safetensors", "original/*"]


def hub_id(source: str) -> tuple[str, str | None] | None:
  """("org/name", revision or None) of a model source; None where it is a directory."""
  if pathlib.Path(source).expanduser().is_dir():
    return None
  found = re.fullmatch(r"(\w[\w.-]*/[\w.-]+)(?:@([\w./-]+))?", source)
  return found and (found[1], found[2])


def find(source: str) -> pathlib.Path:
  """The directory of a model: a local path, or a hub id that is downloaded.

  Args:
    source: a path, "org/name", or "org/name@revision": a branch, tag or commit.
  Raises:
    InputError: no such directory, or no hub to ask.
  """
  path = pathlib.Path(source).expanduser()
  if source and path.is_dir():
    return path
  found = hub_id(source)
  if not source or found is None:
    raise InputError(
      f"model.source {source!r} is no directory and no hub id org/name[@revision]"
    )
  try:
    import huggingface_hub
  except ImportError as e:
    raise InputError(
      f"{source} is not a local directory; to fetch it from the hub, "
      "pip install -e '.[hub]'"
    ) from e
  patterns = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja"]
  try:  # snapshot_download shows its own progress and honours HF_HUB_OFFLINE
    folder = huggingface_hub.snapshot_download(
      found[0], revision=found[1], allow_patterns=patterns,
      ignore_patterns=_OTHER_COPIES,
    )  # fmt: skip
    return pathlib.Path(folder)
  except Exception as e:
    reason = str(e).strip().split("\n")[0]
    raise InputError(
      f"model.source {source!r} is no directory, and the hub gives none: {reason}"
    ) from e


def read_config(directory) -> ModelConfig:
  """The ModelConfig of a model directory."""
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
  """Parameters of a model directory, as the Transformer of `config` has them.

  Args:
    directory: with model.safetensors, or shards and their index.
    config: from `read_config`.
    dtype: of all parameters.
    groups: layers per scan.
    quantize: the projections to NF4, each layer as it is read.
  Raises:
    InputError: missing, unexpected or misshapen tensors, all listed; damaged files.
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
    have.discard(TOP["head"])  # a copy of the embedding, if there at all
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
  """How a leaf lies on a mesh: a sharding, or of 4-bit weights a tree of them."""
  leaf = jax.ShapeDtypeStruct(place.shape, jnp.dtype(dtype))
  if four_bits:
    leaf = jax.eval_shape(jax.vmap(nf4.quantize), leaf)
  return sharding.shardings({path: leaf}, on)[path]


def _nest(flat: dict) -> dict:
  nested: dict = {}
  for path, leaf in flat.items():
    node = nested
    *folders, name = path.split("/")
    for folder in folders:
      node = node.setdefault(folder, {})
    node[name] = leaf
  return nested
