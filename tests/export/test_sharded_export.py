"""Models out of a mesh, and out of several processes: the bytes of one device.

As a program, one of those processes: python test_sharded_export.py DIRECTORY
"""

import functools
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np
import pytest

import jaxpeft
from jaxpeft import assets, cli, config, model
from jaxpeft.checkpoints import hf_write
from jaxpeft.data import tokenizer
from jaxpeft.errors import InputError
from jaxpeft.export import verify
from jaxpeft.parallel import distributed, sharding
from tests.support.meshes import LINEARS, make_mesh, trained

ROOT = pathlib.Path(__file__).parents[2]
CASES = [("LoRA", None, None), ("SVFT", "nf4", None), ("LoRA", "nf4", "nf4")]
MATCH = dict(LoRA=LINEARS, SVFT="layers_.*/mlp/down")  # of which the SVD takes long


@functools.cache
def model_of(case):
  """A trained model on one device."""
  method, quantize, _ = case
  transformer, params = trained(method, quantize, match=MATCH[method])
  return model.Model(transformer, params, tokenizer.load(assets.TINY), "test")


def save(whole, case, directory):
  """Writes the model, on the mesh in force."""
  placed = whole.replace(params=sharding.place(whole.params))
  jaxpeft.save_hf(placed, directory, quantize=case[-1])


def files(directory):
  return {file.name: file.read_bytes() for file in directory.iterdir()}


@functools.cache
def on_one_device(case):
  with tempfile.TemporaryDirectory() as tmp:
    save(model_of(case), case, pathlib.Path(tmp) / "one")
    return files(pathlib.Path(tmp) / "one")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2)])
def test_a_mesh_writes_what_one_device_writes(case, sizes, tmp_path, monkeypatch):
  gathered = []
  to_host = sharding.to_host
  monkeypatch.setattr(
    hf_write.sharding, "to_host", lambda x: gathered.append(x.size) or to_host(x)
  )
  whole = model_of(case)
  with jax.set_mesh(make_mesh(sizes)):
    save(whole, case, tmp_path / "mesh")
  assert max(gathered) <= 256 * 128, "more than one weight of a layer at once"
  assert files(tmp_path / "mesh") == on_one_device(case)


@pytest.mark.slow
def test_two_processes_write_what_one_device_writes(tmp_path):
  for i, case in enumerate(CASES):  # its numbers: an SVD may differ in the last bits
    np.savez(tmp_path / f"{i}.npz", *jax.tree.leaves(model_of(case).params))
  gang = [sys.executable, "-m", "jaxpeft", "launch", "-n", "2"]
  gang += ["--devices-per-process=2", "--", sys.executable, __file__, tmp_path]
  # Optimizations as in conftest; the path, since a script sees only its own directory.
  env = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": str(ROOT)}
  done = subprocess.run(gang, cwd=ROOT, env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  assert done.stdout.count("is written by one process") == 2
  for i, case in enumerate(CASES):
    assert files(tmp_path / str(i)) == on_one_device(case)


def member(directory):
  """One of the processes."""
  with cli.one_clear_line():
    distributed.initialize(**config.base().processes)
    models = [model_of(case) for case in CASES]
    jax.set_mesh(sharding.mesh())
    for i, (whole, case) in enumerate(zip(models, CASES, strict=True)):
      leaves = list(np.load(directory / f"{i}.npz").values())
      params = jax.tree.unflatten(jax.tree.structure(whole.params), leaves)
      save(whole.replace(params=params), case, directory / str(i))
    try:
      verify.export_run("none", "peft", directory / "peft", None, None, None)
    except InputError as e:
      print(e, flush=True)


if __name__ == "__main__":
  member(pathlib.Path(sys.argv[1]))
