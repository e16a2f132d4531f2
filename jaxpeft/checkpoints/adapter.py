"""Saves and loads adapters in jaxpeft's format: safetensors with a JSON description.

The description holds a checksum of itself and one of the tensors' file, so that a
flipped bit is an error and not another adapter. Files of format 1 have none.
"""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from jaxpeft import adapters, temporary, tree
from jaxpeft.adapters import frozen_factors
from jaxpeft.checkpoints import fingerprint as fingerprints
from jaxpeft.checkpoints import json_file
from jaxpeft.errors import InputError
from jaxpeft.parallel import distributed, sharding

_THETA, _META = "adapter.safetensors", "adapter.json"
_FORMAT = 2  # since 2, the checksums are there


def save(directory, trainable, meta: dict, kept: dict | None = None):
  """Writes an adapter as a directory, replacing an adapter that is there already.

  Every process must call this; process 0 writes.

  Args:
    directory: e.g. runs/NAME/adapter.
    trainable: the trainable partition.
    meta: a JSON object; `load` needs its "fingerprint" of the frozen partition.
    kept: {path: frozen leaf} to save as well, see `adapters.kept`.
  Raises:
    InputError: the directory holds files that are not an adapter's.
  """
  directory = pathlib.Path(directory)
  flat = tree.flatten(trainable) | (kept or {})
  flat = {k: sharding.to_host(x) for k, x in flat.items()}
  if distributed.is_main():
    _write(directory, flat, meta)
  distributed.barrier("adapter")


def _write(directory: pathlib.Path, flat: dict, meta: dict):
  if directory.is_dir():
    others = sorted({file.name for file in directory.iterdir()} - {_THETA, _META})
    if others:
      raise InputError(
        f"{directory} holds other files, e.g. {others[0]}; an adapter needs a "
        "directory of its own"
      )
  directory.parent.mkdir(parents=True, exist_ok=True)
  with temporary.directory(directory.parent, ".adapter-") as tmp:
    safetensors.numpy.save_file(flat, tmp / _THETA)
    meta = meta | dict(format=_FORMAT, tensors=json_file.crc32_of_file(tmp / _THETA))
    meta |= dict(crc32=json_file.crc32(meta))
    (tmp / _META).write_text(json.dumps(meta, indent=1) + "\n")
    tmp.chmod(0o755)  # temporary directories are private
    (tmp / _THETA).chmod(0o644)
    temporary.swap_in(tmp, directory)


def fingerprint(frozen) -> dict:
  """{path: a few numbers} that identify a frozen partition, see `check_base`."""
  flat = tree.flatten(frozen)
  return fingerprints.fingerprint(
    {p: x for p, x in flat.items() if not frozen_factors.is_marked(p)}
  )


def describe(params, key, fingerprint: dict) -> dict:
  """The JSON from which `export.load_adapter` rebuilds the adapted tree on the base.

  Args:
    params: an adapted tree.
    key: the random key that it was adapted with; None is `jax.random.key(0)`.
    fingerprint: of its frozen partition.
  """
  key = jax.random.key(0) if key is None else key
  return dict(
    format=_FORMAT,
    signs="the entry of largest magnitude of each column of u is positive",
    key=jax.random.key_data(key).tolist(),
    adapters=adapters.describe(params),
    fingerprint=fingerprint,
  )


def read_meta(directory) -> dict:
  """The JSON description of the adapter in a directory.

  Raises:
    InputError: the file is missing or damaged.
  """
  path = pathlib.Path(directory) / _META
  meta = json_file.read(path, f"the adapter in {directory}")
  version = meta.get("format", 1)
  if version not in range(1, _FORMAT + 1):
    raise InputError(
      f"{path} has format {str(version)[:40]!r}; this version of jaxpeft reads formats "
      f"1 to {_FORMAT}"
    )
  sums = {key: meta[key] for key in ("crc32", "tensors") if key in meta}
  rest = {key: x for key, x in meta.items() if key != "crc32"}
  if (version > 1 or sums) and (
    len(sums) < 2 or sums["crc32"] != json_file.crc32(rest)
  ):
    raise InputError(
      f"{path} was changed or damaged after it was written: its checksum differs. "
      "Restore it from a backup"
    )
  _check_meta(meta, path)
  return meta


def _check_meta(meta: dict, path: pathlib.Path):
  """Raises InputError unless the entries of a description have their types."""
  mark = meta.get("fingerprint")
  good = isinstance(mark, dict) and all(
    isinstance(row, list) and all(_is_finite(x) for x in row) for row in mark.values()
  )
  if not good:
    raise InputError(f"{path}: `fingerprint` is missing, or not lists of numbers")
  rules = meta.get("adapters", {})
  if not isinstance(rules, dict) or not all(map(_is_object, rules.values())):
    raise InputError(f"{path}: `adapters` is not an object of objects")
  key = meta.get("key", [0, 0])
  words = isinstance(key, list) and all(type(x) is int and 0 <= x < 2**32 for x in key)
  if not words or len(key) not in (2, 4):
    raise InputError(f"{path}: `key` is {str(key)[:60]}, not 2 or 4 words of 32 bits")


def _is_object(x) -> bool:
  return isinstance(x, dict)


def _is_finite(x) -> bool:
  return type(x) in (int, float) and abs(x) < 1e300 and math.isfinite(x)


def load(directory, like, fingerprint: dict):
  """The trainable partition that is saved in a directory, placed on the current mesh.

  Args:
    directory: written by `save`.
    like: a trainable partition with the structure and shapes of the result.
    fingerprint: of the frozen partition that the adapter is for.
  Raises:
    InputError: files are missing or damaged, the leaves are not those of `like`, or the
      adapter was trained on another base.
  """
  meta = read_meta(directory)
  flat = {k: x for k, x in _read(directory).items() if "/frozen/" not in k}
  check_base(meta["fingerprint"], fingerprint, directory)
  want = tree.flatten(like)
  _check_leaves(directory, flat, want)
  leaves = {k: jnp.asarray(x, want[k].dtype) for k, x in flat.items()}
  return sharding.place(tree.unflatten(leaves, like))


def load_kept(directory, params):
  """An adapted tree in which the saved frozen leaves replace its own.

  Args:
    directory: written by `save`, with `kept`.
    params: an adapted tree; returned as it is if its methods keep no frozen leaves.
  Raises:
    InputError: files are missing or damaged, or the leaves are not those of `params`.
  """
  want = adapters.kept(params)
  if not want:
    return params
  flat = {k: x for k, x in _read(directory).items() if "/frozen/" in k}
  _check_leaves(directory, flat, want)
  return adapters.put_kept(params, {k: jnp.asarray(x) for k, x in flat.items()})


def _read(directory) -> dict:
  """{path: array} of the tensors' file, if its checksum is that of the description."""
  path = pathlib.Path(directory) / _THETA
  want = read_meta(directory).get("tensors")
  try:
    if want is not None and json_file.crc32_of_file(path) != want:
      raise InputError(
        f"{path} is damaged, or belongs to another {_META}: its checksum differs. "
        "Restore it from a backup"
      )
    return safetensors.numpy.load_file(path)
  except InputError:
    raise
  except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as e:
    raise InputError(f"cannot read the adapter in {directory}: {e}") from e


def _check_leaves(directory, flat: dict, want: dict):
  wrong = [
    f"{path}: {list(flat[path].shape) if path in flat else 'missing'}"
    for path, x in want.items()
    if path not in flat or flat[path].shape != x.shape
  ] + [f"{path}: unexpected" for path in flat.keys() - want.keys()]
  if wrong:
    raise InputError(f"the adapter in {directory} does not fit: {'; '.join(wrong[:8])}")
  for path, x in flat.items():
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise InputError(f"{directory}: {path} holds {x.dtype}, no fractions")
    if not np.isfinite(x.astype(np.float32)).all():
      raise InputError(f"{directory}: {path} holds infinities or NaN: it is damaged")


def check_base(saved: dict, now: dict, place):
  """Checks that two fingerprints belong to the same frozen partition.

  Args:
    saved: `fingerprint` of the partition that the adapter was trained with.
    now: `fingerprint` of the one it is to be used with.
    place: where the adapter is, for the error message.
  Raises:
    InputError: they differ.
  """
  different = fingerprints.differences(saved, now)
  if different:
    shown = ", ".join(different[:3]) + (" ..." if len(different) > 3 else "")
    raise InputError(
      f"{place} was trained on another base (or other singular vectors of it, or was "
      f"adapted with another key): {len(different)} of {len(now)} leaves differ, "
      f"e.g. {shown}; use the base, seed or key that it was trained with. If its "
      "method has `iterations` (a randomized SVD), also use the version of jaxpeft "
      "that trained it"
    )
