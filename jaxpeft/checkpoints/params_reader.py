"""Parameters in memory as a `TensorReader`, from which files are written."""

from typing import Any

import jax
import numpy as np

from jaxpeft.checkpoints.hf_names import group_index, places
from jaxpeft.linear import is_node
from jaxpeft.parallel import sharding
from jaxpeft.transformer.config import ModelConfig
from jaxpeft.tree import path_name


class ParamsReader:
  """The tensors of a model in memory, under Hugging Face's names.

  Only one weight of one layer is gathered at a time. If there are several processes,
  all must read the same tensors in the same order.
  """

  def __init__(self, config: ModelConfig, params, finish):
    """Makes a reader.

    Args:
      config: of the model.
      params: arrays and weight nodes.
      finish: (path, leaf of one layer) -> its array.
    """
    self.place, self._finish = "the model", finish
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_node)
    self._flat: dict[str, Any] = {path_name(p): x for p, x in leaves}
    depths = tuple(
      jax.tree.leaves(self._flat[path])[0].shape[0]
      for path in sorted(self._flat, key=group_index)
      if path.endswith("attn/q")
    )
    self.shapes: dict[str, tuple[int, ...]] = {}
    self._parts: dict[str, list[tuple]] = {}
    for path, place in places(config, depths).items():
      for i, name in enumerate(place.tensors):
        self.shapes[name] = place.whole
        self._parts.setdefault(name, []).append((place.start, path, i, place))
    self.dtypes = dict.fromkeys(self.shapes, "F32")
    sizes = dict(data=1, fsdp=1, tensor=1)
    self._alone = sharding.named(sizes, False, jax.local_devices()[:1])

  def read(self, name: str) -> np.ndarray:
    """A whole tensor, float32."""
    rows = []
    for _, path, i, place in sorted(self._parts[name], key=lambda part: part[0]):
      layer = i if place.stacked else slice(None)
      leaf = jax.tree.map(
        lambda x, layer=layer: sharding.to_host(x[layer]), self._flat[path]
      )
      with jax.set_mesh(self._alone):
        one = np.asarray(self._finish(path, leaf), np.float32)
      rows.append(one.T if place.transpose else one)
    return np.ascontiguousarray(rows[0] if len(rows) == 1 else np.concatenate(rows))

  def read_slice(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    """The part of a tensor at an index."""
    return self.read(name)[index]
