"""Hugging Face safetensors in and out, one tensor at a time.

Reading fills each stacked leaf in place (`hf_read`); writing goes file by file.
"""

import functools
import json
import pathlib
import re
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from jaxpeft import nf4, sharding
from jaxpeft.checkpoints import bnb, hf_config, hf_read
from jaxpeft.checkpoints.hf_names import GEMMA2, LAYER, TOP, group_index
from jaxpeft.errors import InputError
from jaxpeft.linear import is_node
from jaxpeft.model_config import ModelConfig
from jaxpeft.transformer import Transformer, layer_groups

_BUFFERS = re.compile(r".*\.rotary_emb\.inv_freq")  # recomputed, not loaded
# The same weights under their authors' names, e.g. Mistral's: twice the download.
_OTHER_COPIES = ["consolidated*.safetensors", "original/*"]
_SHARD_BYTES = 5 * 10**9


def find(source: str) -> pathlib.Path:
  """The directory of a model: a local path, or a hub id that is downloaded.

  Raises:
    InputError: no such directory, or no hub to ask.
  """
  path = pathlib.Path(source).expanduser()
  if path.is_dir():
    return path
  if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
    raise InputError(f"model source {source!r} is no directory and no hub id org/name")
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
      source, allow_patterns=patterns, ignore_patterns=_OTHER_COPIES
    )
    return pathlib.Path(folder)
  except Exception as e:
    reason = str(e).strip().split("\n")[0]
    raise InputError(f"cannot fetch {source} from the hub: {reason}") from e


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
  places = _places(config, groups)
  files = _files(directory)
  wanted = {name for place in places.values() for name in place.tensors}
  have = {name for name in files if not _BUFFERS.fullmatch(name)}
  packed = bnb.names(files)
  if packed and not quantize:
    raise InputError(f"{directory} holds 4-bit weights: load it with quantize='nf4'")
  have -= {part for name in packed for part in bnb.parts(name)}
  if config.tied:
    have.discard(TOP["head"])  # a copy of the embedding, if there at all
  problems = [f"missing {name}" for name in sorted(wanted - have)]
  problems += [f"unexpected {name}" for name in sorted(have - wanted)]
  problems += [
    f"{name} is {list(files[name][1])}, not {list(place.theirs)}"
    for place in places.values()
    for name in place.tensors
    if name in files and name not in packed and tuple(files[name][1]) != place.theirs
  ]
  if problems:
    more = f" and {len(problems) - 20} more" if len(problems) > 20 else ""
    raise InputError(f"{directory}: {'; '.join(problems[:20])}{more}")
  flat, on = {}, sharding.current()
  for path, place in places.items():
    four_bits = quantize and nf4.takes(path)
    where = on and _sharding(path, place, four_bits, dtype, on)
    read = functools.partial(hf_read.read_nf4, path) if four_bits else hf_read.read
    flat[path] = read(place, files, dtype, where)
  return _nest(flat)


def save(directory, config: ModelConfig, params, tokenizer=None):
  """Writes plain parameters as a model directory that transformers opens.

  All is written beside `directory` first, and then moved into it file by file.

  Args:
    directory: to be made, or to be replaced file by file.
    config: of the model.
    params: plain arrays or NF4 weights (merge adapters first).
    tokenizer: a `Tokenizer` whose files are to lie beside the weights.
  """
  directory = pathlib.Path(directory)
  directory.parent.mkdir(parents=True, exist_ok=True)
  flat = {
    jax.tree_util.keystr(p, simple=True, separator="/"): x
    for p, x in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_node)
  }
  groups = [
    flat[p].shape[0] for p in sorted(flat, key=group_index) if p.endswith("norm/attn")
  ]
  dtype = str(flat["embed"].dtype)
  with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".save-") as tmp:
    tmp = pathlib.Path(tmp)
    _write_shards(tmp, _places(config, tuple(groups)), flat)
    hf = hf_config.to_hf(config, dtype)
    if any(map(is_node, flat.values())):
      hf["quantization_config"] = bnb.CONFIG | dict(bnb_4bit_compute_dtype=dtype)
    (tmp / "config.json").write_text(json.dumps(hf, indent=2) + "\n")
    for name, data in (tokenizer.files if tokenizer else {}).items():
      (tmp / name).write_bytes(data)
    directory.mkdir(exist_ok=True)
    for old in directory.glob("model*.safetensors*"):
      old.unlink()
    for file in tmp.iterdir():
      file.chmod(0o644)  # safetensors makes them private
      shutil.move(file, directory / file.name)


def _sharding(path: str, place, four_bits: bool, dtype: str, on):
  """How a leaf lies on a mesh: a sharding, or of 4-bit weights a tree of them."""
  leaf = jax.ShapeDtypeStruct(place.shape, jnp.dtype(dtype))
  if four_bits:
    leaf = jax.eval_shape(jax.vmap(nf4.quantise), leaf)
  return sharding.shardings({path: leaf}, on)[path]


class _Place:
  """Where one of our leaves comes from: a tensor, or one for each layer of a stack."""

  def __init__(self, tensors, shape, stacked, transpose):
    self.tensors, self.shape = tensors, shape
    self.stacked, self.transpose = stacked, transpose
    own = shape[1:] if stacked else shape
    self.theirs = tuple(reversed(own)) if transpose else tuple(own)

  def slot(self, leaf, i: int):
    """The view of our leaf that tensor i fills, in their orientation."""
    view = leaf[i] if self.stacked else leaf
    return view.T if self.transpose else view


def _places(config: ModelConfig, groups) -> dict[str, _Place]:
  model = Transformer(config, groups=groups)
  tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
  names = LAYER | (GEMMA2 if config.post_norms else {})
  depths = layer_groups(groups, config.depth)
  places = {}
  for key_path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
    path = jax.tree_util.keystr(key_path, simple=True, separator="/")
    if path in TOP:
      places[path] = _Place([TOP[path]], leaf.shape, False, path == "head")
      continue
    group, _, inside = path.partition("/")
    index = group_index(group)
    first = sum(depths[:index])
    tensors = [
      f"model.layers.{first + i}.{names[inside]}" for i in range(leaf.shape[0])
    ]
    places[path] = _Place(tensors, leaf.shape, True, leaf.ndim == 3)
  return places


def _files(directory: pathlib.Path) -> dict[str, tuple[pathlib.Path, list[int]]]:
  """{tensor: (file, shape)} of a model directory."""
  index = directory / "model.safetensors.index.json"
  if index.exists():
    try:
      names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as e:
      raise InputError(f"{index} is no index of shards: {e}") from e
    paths = [directory / name for name in names]
  else:
    one = directory / "model.safetensors"
    paths = [one] if one.exists() else sorted(directory.glob("*.safetensors"))
  if not paths:
    raise InputError(f"no .safetensors in {directory}; other formats are not read")
  found = {}
  for path in paths:
    try:
      with safetensors.safe_open(path, "numpy") as f:
        for name in f.keys():
          found[name] = (path, f.get_slice(name).get_shape())
    except (OSError, safetensors.SafetensorError) as e:
      raise InputError(f"cannot read {path}: {e}") from e
  return found


def _write_shards(directory: pathlib.Path, places, flat):
  shards, used = [[]], 0
  for path, place in places.items():
    for i, name in enumerate(place.tensors):
      size = flat[path].nbytes // len(place.tensors)
      if used + size > _SHARD_BYTES and shards[-1]:
        shards.append([])
        used = 0
      shards[-1].append((name, path, place, i, size))
      used += size
  many, weight_map = len(shards) > 1, {}
  for number, shard in enumerate(shards, 1):
    file = (
      f"model-{number:05}-of-{len(shards):05}.safetensors"
      if many
      else ("model.safetensors")
    )
    tensors = {}
    for name, path, place, i, _ in shard:
      if is_node(flat[path]):
        tensors |= bnb.write(name, flat[path][i])
        weight_map |= dict.fromkeys({name, *bnb.parts(name)}, file)
        continue
      leaf = flat[path][i : i + 1] if place.stacked else flat[path]
      tensors[name] = np.ascontiguousarray(place.slot(sharding.to_host(leaf), 0))
      weight_map[name] = file
    safetensors.numpy.save_file(tensors, directory / file, {"format": "pt"})
  if many:
    total = sum(size for shard in shards for *_, size in shard)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _nest(flat: dict) -> dict:
  nested: dict = {}
  for path, leaf in flat.items():
    node = nested
    *folders, name = path.split("/")
    for folder in folders:
      node = node.setdefault(folder, {})
    node[name] = leaf
  return nested
