"""Writes Hugging Face model directories, one layer's weight at a time.

Each weight is gathered on the host, finished on one device, and written by process 0.
So the result does not depend on the mesh, and a host holds at most one file of it.
"""

import collections
import functools
import json
import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy

from jaxpeft import temporary
from jaxpeft.checkpoints import bnb, hf_config
from jaxpeft.checkpoints.hf_names import group_index, places
from jaxpeft.errors import InputError
from jaxpeft.linear import is_node
from jaxpeft.objectives.head import HEAD
from jaxpeft.parallel import distributed, sharding
from jaxpeft.transformer.config import ModelConfig
from jaxpeft.tree import path_name

_SHARD_BYTES = 5 * 10**9  # per file


def save(directory, config: ModelConfig, params, tokenizer=None, finish=None):
  """Writes parameters as a model directory that transformers can open.

  The files are first written to a temporary directory next to `directory`, and then
  moved into it one by one. Every process must call this; process 0 writes.

  Args:
    directory: created if needed; its old weights are deleted.
    config: of the model.
    params: arrays and weight nodes.
    tokenizer: a `Tokenizer` whose files are saved with the weights, or None.
    finish: (path, leaf of one layer) -> the array or NF4 weight to write; None writes
      the leaf itself.
  """
  directory = pathlib.Path(directory)
  flat = {
    path_name(p): x
    for p, x in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_node)
  }
  finish = finish or (lambda path, leaf: leaf)
  tensors, shapes = _tensors(config, flat, finish)
  if not distributed.is_main():
    for tensor in tensors:
      for part in tensor.parts:
        _to_host(flat, part)
    return distributed.barrier("saved")
  dtype = str(shapes["embed"].dtype)
  directory.parent.mkdir(parents=True, exist_ok=True)
  with temporary.directory(directory.parent, ".save-") as tmp:
    _write_shards(tmp, flat, tensors, finish)
    hf = hf_config.to_hf(config, dtype)
    if HEAD in flat:
      hf |= hf_config.reward(hf)
    if any(map(is_node, shapes.values())):
      hf["quantization_config"] = bnb.CONFIG | dict(bnb_4bit_compute_dtype=dtype)
    (tmp / "config.json").write_text(json.dumps(hf, indent=2) + "\n")
    for name, data in (tokenizer.files if tokenizer else {}).items():
      (tmp / name).write_bytes(data)
    directory.mkdir(exist_ok=True)
    for old in directory.glob("model*.safetensors*"):
      old.unlink()
    for file in tmp.iterdir():
      file.chmod(0o644)  # safetensors lets only their owner read them
      shutil.move(file, directory / file.name)
  distributed.barrier("saved")


class _Part(NamedTuple):
  """One weight of our leaves, which is a tensor of theirs or some of its rows."""

  path: str  # of our leaf
  layer: int | None  # index into our stacked leaf; None if it is not stacked
  transpose: bool
  start: int  # its first row


class _Tensor(NamedTuple):
  """A tensor to write, in their naming, and its parts in the order of their rows."""

  name: str
  parts: list[_Part]
  bytes: int


def _tensors(config, flat, finish):
  """([every `_Tensor` to write], {path: what `finish` returns, as shapes}).

  This computes shapes only.

  Args:
    config: of the model.
    flat: {path: leaf}.
    finish: see `save`.
  """
  depths = [
    jax.tree.leaves(flat[path])[0].shape[0]
    for path in sorted(flat, key=group_index)
    if path.endswith("attn/q")
  ]
  shapes: dict = {}
  parts: dict[str, list[_Part]] = {}
  sizes = collections.Counter()
  for path, place in places(config, tuple(depths), HEAD in flat).items():
    layers = range(len(place.tensors)) if place.stacked else [None]
    made = functools.partial(_finished, finish, path, layers[0])
    shapes[path] = jax.eval_shape(made, flat[path])
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes[path]))
    if place.fused and is_node(shapes[path]):
      raise InputError(
        f"{path} lies in the fused tensor {place.tensors[0]}, which cannot be written "
        "in 4 bits; write it in 16 bits (quantize=None)"
      )
    for name, layer in zip(place.tensors, layers, strict=True):
      part = _Part(path, layer, place.transpose, place.start)
      parts.setdefault(name, []).append(part)
      sizes[name] += size
  by_row = lambda part: part.start  # noqa: E731
  tensors = [_Tensor(n, sorted(p, key=by_row), sizes[n]) for n, p in parts.items()]
  return tensors, shapes


def _finished(finish, path: str, layer: int | None, leaf):
  return finish(path, _cut(leaf, layer))


def _cut(leaf, layer: int | None):
  return leaf if layer is None else jax.tree.map(lambda x: x[layer], leaf)


def _to_host(flat, part: _Part):
  """One layer's whole leaf in NumPy; all processes must gather in the same order."""
  return jax.tree.map(lambda x: sharding.to_host(_cut(x, part.layer)), flat[part.path])


def _write_shards(directory: pathlib.Path, flat, tensors, finish):
  shards, used = [[]], 0
  for tensor in tensors:
    if used + tensor.bytes > _SHARD_BYTES and shards[-1]:
      shards.append([])
      used = 0
    shards[-1].append(tensor)
    used += tensor.bytes
  sizes = dict(data=1, fsdp=1, tensor=1)
  alone = sharding.named(sizes, False, jax.local_devices()[:1])
  many, weight_map = len(shards) > 1, {}
  for number, shard in enumerate(shards, 1):
    part = f"-{number:05}-of-{len(shards):05}" if many else ""
    file = f"model{part}.safetensors"
    arrays = {}
    for tensor in shard:
      rows: list[Any] = []
      for part in tensor.parts:
        host = _to_host(flat, part)
        with jax.set_mesh(alone):
          one = finish(part.path, host)
          made = bnb.write(tensor.name, one) if is_node(one) else None
          one = one if is_node(one) else np.asarray(one)
        rows.append(one.T if part.transpose and not is_node(one) else one)
      if made is None:
        whole = rows[0] if len(rows) == 1 else np.concatenate(rows)
        made = {tensor.name: np.ascontiguousarray(whole)}
      arrays |= made
      weight_map |= dict.fromkeys(made, file)
    safetensors.numpy.save_file(arrays, directory / file, {"format": "pt"})
  if many:
    total = sum(tensor.bytes for tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
