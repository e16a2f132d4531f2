"""An adapter's own file: theta as safetensors, and in JSON what it belongs to."""

import json
import os
import pathlib
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from jaxpeft import adapters, partitions, svd
from jaxpeft.errors import InputError

_THETA, _META = "adapter.safetensors", "adapter.json"


def save(directory, trainable, meta: dict):
  """Writes a directory with theta and `meta`, replacing one of that name whole.

  Args:
    directory: e.g. runs/NAME/adapter.
    trainable: the trainable partition.
    meta: JSON; `load` needs its "fingerprint" of the frozen partition.
  Raises:
    InputError: the directory holds anything else.
  """
  directory = pathlib.Path(directory)
  if directory.is_dir():
    others = sorted({file.name for file in directory.iterdir()} - {_THETA, _META})
    if others:
      raise InputError(
        f"{directory} holds other files, e.g. {others[0]}; an adapter gets a directory "
        "of its own"
      )
  directory.parent.mkdir(parents=True, exist_ok=True)
  tmp = pathlib.Path(tempfile.mkdtemp(dir=directory.parent, prefix=".adapter-"))
  flat = {k: np.asarray(x) for k, x in partitions.flatten(trainable).items()}
  safetensors.numpy.save_file(flat, tmp / _THETA)
  (tmp / _META).write_text(json.dumps(meta, indent=1) + "\n")
  tmp.chmod(0o755)  # temporary directories are private
  (tmp / _THETA).chmod(0o644)
  if directory.exists():
    old = pathlib.Path(tempfile.mkdtemp(dir=directory.parent, prefix=".adapter-"))
    os.replace(directory, old)
    os.replace(tmp, directory)
    shutil.rmtree(old)
  else:
    os.replace(tmp, directory)


def describe(params, key, fingerprint: dict) -> dict:
  """What `export.load_adapter` needs to make the same adapted tree from the base."""
  key = jax.random.key(0) if key is None else key
  return dict(
    format=1,
    signs="the entry of largest magnitude of each column of u is positive",
    key=jax.random.key_data(key).tolist(),
    adapters=adapters.describe(params),
    fingerprint=fingerprint,
  )


def read_meta(directory) -> dict:
  """The JSON beside an adapter's theta.

  Raises:
    InputError: if it is missing or damaged.
  """
  try:
    meta = json.loads((pathlib.Path(directory) / _META).read_text())
    meta["fingerprint"]
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise InputError(f"cannot read the adapter in {directory}: {e}") from e
  return meta


def load(directory, like, fingerprint: dict):
  """The trainable partition saved in a directory, in the structure of `like`.

  Raises:
    InputError: damaged or missing files, other leaves, or another base than the one
      that the adapter was trained on.
  """
  directory = pathlib.Path(directory)
  meta = read_meta(directory)
  try:
    flat = safetensors.numpy.load_file(directory / _THETA)
  except (OSError, ValueError, safetensors.SafetensorError) as e:
    raise InputError(f"cannot read the adapter in {directory}: {e}") from e
  check_base(meta["fingerprint"], fingerprint, directory)
  want = partitions.flatten(like)
  wrong = [
    f"{path}: {list(flat[path].shape) if path in flat else 'missing'}"
    for path, x in want.items()
    if path not in flat or flat[path].shape != x.shape
  ] + [f"{path}: unexpected" for path in flat.keys() - want.keys()]
  if wrong:
    raise InputError(f"the adapter in {directory} does not fit: {'; '.join(wrong[:8])}")
  return partitions.unflatten({k: jnp.asarray(x) for k, x in flat.items()}, like)


def check_base(saved: dict, now: dict, place):
  """Raises InputError if two fingerprints are of different frozen partitions."""
  different = svd.differences(saved, now)
  if different:
    shown = ", ".join(different[:3]) + (" ..." if len(different) > 3 else "")
    raise InputError(
      f"{place} was trained on another base (or other singular vectors of it, or was "
      f"adapted with another key): {len(different)} of {len(now)} leaves differ, "
      f"e.g. {shown}; use the base, seed or key that it was trained with"
    )
