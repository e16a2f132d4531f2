"""Saves and loads adapters in jaxpeft's format: safetensors with a JSON description."""

import json
import os
import pathlib
import shutil
import tempfile

import jax
import jax.numpy as jnp
import safetensors
import safetensors.numpy

from jaxpeft import adapters, tree
from jaxpeft.adapters import frozen_factors
from jaxpeft.checkpoints import fingerprint as fingerprints
from jaxpeft.errors import InputError
from jaxpeft.parallel import distributed, sharding

_THETA, _META = "adapter.safetensors", "adapter.json"


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
  tmp = pathlib.Path(tempfile.mkdtemp(dir=directory.parent, prefix=".adapter-"))
  safetensors.numpy.save_file(flat, tmp / _THETA)
  (tmp / _META).write_text(json.dumps(meta, indent=1) + "\n")
  tmp.chmod(0o755)  # mkdtemp makes a private directory
  (tmp / _THETA).chmod(0o644)
  if directory.exists():
    old = pathlib.Path(tempfile.mkdtemp(dir=directory.parent, prefix=".adapter-"))
    os.replace(directory, old)
    os.replace(tmp, directory)
    shutil.rmtree(old)
  else:
    os.replace(tmp, directory)


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
    format=1,
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
  try:
    meta = json.loads((pathlib.Path(directory) / _META).read_text())
    meta["fingerprint"]
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise InputError(f"cannot read the adapter in {directory}: {e}") from e
  return meta


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
  _check_shapes(directory, flat, tree.flatten(like))
  leaves = {k: jnp.asarray(x) for k, x in flat.items()}
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
  _check_shapes(directory, flat, want)
  return adapters.put_kept(params, {k: jnp.asarray(x) for k, x in flat.items()})


def _read(directory) -> dict:
  try:
    return safetensors.numpy.load_file(pathlib.Path(directory) / _THETA)
  except (OSError, ValueError, safetensors.SafetensorError) as e:
    raise InputError(f"cannot read the adapter in {directory}: {e}") from e


def _check_shapes(directory, flat: dict, want: dict):
  wrong = [
    f"{path}: {list(flat[path].shape) if path in flat else 'missing'}"
    for path, x in want.items()
    if path not in flat or flat[path].shape != x.shape
  ] + [f"{path}: unexpected" for path in flat.keys() - want.keys()]
  if wrong:
    raise InputError(f"the adapter in {directory} does not fit: {'; '.join(wrong[:8])}")


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
