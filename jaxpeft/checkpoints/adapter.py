"""An adapter's own file: theta as safetensors, and in JSON what it belongs to."""

import json
import os
import pathlib
import shutil
import tempfile

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from jaxpeft import partitions, svd
from jaxpeft.errors import InputError

_THETA, _META = "adapter.safetensors", "adapter.json"


def save(directory, trainable, meta: dict):
  """Writes a directory with theta and `meta`, replacing one of that name whole.

  Args:
    directory: e.g. runs/NAME/adapter.
    trainable: the trainable partition.
    meta: JSON; `load` needs its "fingerprint" of the frozen partition.
  """
  directory = pathlib.Path(directory)
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


def load(directory, like, fingerprint: dict):
  """The trainable partition saved in a directory, in the structure of `like`.

  Raises:
    InputError: damaged or missing files, other leaves, or another base than the one
      that the adapter was trained on.
  """
  directory = pathlib.Path(directory)
  try:
    meta = json.loads((directory / _META).read_text())
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
      f"{place} was trained on another base (or other singular vectors of it): "
      f"{len(different)} of {len(now)} frozen leaves differ, e.g. {shown}; "
      "set config.model.source to the one it was trained on"
    )
