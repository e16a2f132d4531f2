"""Builds the leaves of a model from a `TensorReader`, with little host memory.

On a mesh, each process reads only the pieces that its devices hold. The host holds
these pieces of one leaf, and one tensor of the file.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft.checkpoints import bnb
from jaxpeft.checkpoints.reader import TensorReader
from jaxpeft.quantization import nf4


def read(place, reader: TensorReader, dtype: str, sharding=None):
  """One leaf as a jax.Array, read tensor by tensor.

  Args:
    place: the `hf_names.Place` of the leaf.
    reader: of the model's tensors.
    dtype: of the result.
    sharding: of the result on a mesh; None puts it on the default device.
  """
  if sharding is None:
    leaf = _aligned(place.shape, jnp.dtype(dtype))
    for i, name in enumerate(place.tensors):
      place.slot(leaf, i)[...] = _part(place, reader, name)
    # On a CPU the aligned buffer itself becomes the array: no second copy.
    return jax.device_put(leaf, may_alias=True)

  def piece(index):
    layers, inside = _layers(place, index)
    out = _aligned((len(layers), *map(len, inside)), jnp.dtype(dtype))
    theirs = tuple(slice(x.start, x.stop) for x in inside)
    theirs = theirs[::-1] if place.transpose else theirs
    for i, layer in enumerate(layers):
      part = reader.read_slice(place.tensors[layer], place.within(theirs))
      out[i] = part.T if place.transpose else part
    return out if place.stacked else out[0]

  return _from_pieces(place.shape, sharding, piece)


def read_nf4(path: str, place, reader: TensorReader, dtype: str, sharding=None):
  """One stacked leaf as an NF4 weight, quantized layer by layer.

  The host holds the 4-bit stack and one layer's weight in full precision. Weights that
  the file already holds in 4 bits are taken as they are.

  Args:
    path: of the leaf, for error messages.
    place: the `hf_names.Place` of the leaf.
    reader: of the model's tensors.
    dtype: of the dequantized weight.
    sharding: a tree of shardings like the result; None puts it on the default device.
  Raises:
    InputError: the shape cannot be quantized, or a 4-bit weight is damaged.
  """
  packed = bnb.names(reader.shapes)
  nf4.check(path, place.shape[1:])

  def layer(name):
    if name in packed:
      node = bnb.read(name, reader.read, place.theirs, dtype)
    else:
      node = nf4.quantize(jnp.asarray(_part(place, reader, name).T).astype(dtype))
    return jax.tree.map(np.asarray, node)

  depth = len(place.tensors)
  if sharding is None:
    stack: Any = None
    for i, name in enumerate(place.tensors):
      node = layer(name)
      if stack is None:
        stack = jax.tree.map(lambda x: _aligned((depth, *x.shape), x.dtype), node)
      for all_, x in zip(jax.tree.leaves(stack), jax.tree.leaves(node), strict=True):
        all_[i] = x
    return jax.device_put(stack, may_alias=True)
  shapes = jax.eval_shape(
    jax.vmap(lambda w: nf4.quantize(w, jnp.dtype(dtype))),
    jax.ShapeDtypeStruct(place.shape, jnp.dtype(dtype)),
  )
  leaves, tree = jax.tree.flatten(shapes)
  sharding = jax.tree.leaves(sharding)
  pieces: list[
    dict
  ] = [  # {index: this process's piece} of every leaf; the layer axis is never split
    {_key(index): None for index in s.addressable_devices_indices_map(x.shape).values()}
    for x, s in zip(leaves, sharding, strict=True)
  ]
  for i, name in enumerate(place.tensors):
    for found, x in zip(pieces, jax.tree.leaves(layer(name)), strict=True):
      for key in found:
        part = x[tuple(slice(*ends) for ends in key[1:])]
        if found[key] is None:
          found[key] = _aligned((depth, *part.shape), part.dtype)
        found[key][i] = part
  arrays = [
    _from_pieces(x.shape, s, lambda index, p=p: p[_key(index)])
    for x, s, p in zip(leaves, sharding, pieces, strict=True)
  ]
  return jax.tree.unflatten(tree, arrays)


def _part(place, reader: TensorReader, name: str) -> np.ndarray:
  """The rows of a tensor that belong to the leaf; all of them unless it is fused."""
  if not place.fused:
    return reader.read(name)
  return reader.read_slice(name, place.within((slice(None),)))


def _layers(place, index) -> tuple[range, list[range]]:
  """(layers, [range along each axis of one layer]) that an index of a leaf selects."""
  ranges = [range(*s.indices(n)) for s, n in zip(index, place.shape, strict=True)]
  return (ranges[0], ranges[1:]) if place.stacked else (range(1), ranges)


def _from_pieces(shape, sharding, piece):
  """A jax.Array made of pieces; a piece that several devices hold is read only once.

  Args:
    shape: of the whole array.
    sharding: of the array.
    piece: index -> the NumPy array there.
  """
  found, arrays = {}, []
  for device, index in sharding.addressable_devices_indices_map(shape).items():
    key = _key(index)
    if key not in found:
      found[key] = piece(index)
    arrays.append(jax.device_put(found[key], device, may_alias=True))
  return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _key(index):
  return tuple((s.start, s.stop) for s in index)


def _aligned(shape, dtype) -> np.ndarray:
  """An uninitialized array, aligned to 64 bytes so that XLA can use it uncopied."""
  size = int(np.prod(shape)) * dtype.itemsize
  buffer = np.empty(size + 64, np.uint8)
  start = -buffer.ctypes.data % 64
  return buffer[start : start + size].view(dtype).reshape(shape)
