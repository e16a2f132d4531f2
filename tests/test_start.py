"""Commands start at once: help and runs import only what they need."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LARGE = ("jax", "flax", "optax", "orbax", "scipy", "matplotlib", "grain", "pyarrow")


def imported(*words) -> set[str]:
  """Packages that a command imports."""
  done = subprocess.run(
    [sys.executable, "-X", "importtime", *words],
    cwd=ROOT, capture_output=True, text=True, check=True,
    env=os.environ | dict(PYTHONPATH=f"{ROOT}:{ROOT / 'kernels'}"),
  )  # fmt: skip
  return {x.split(".")[0] for x in re.findall(r"\| +([\w.]+)$", done.stderr, re.M)}


@pytest.mark.parametrize(
  "words",
  [
    ("train.py", "--help"),
    ("eval.py", "--help"),
    ("-m", "jaxpeft", "--help"),
    ("-m", "jaxpeft", "memory", "--help"),
    ("-m", "jaxpeft", "launch", "--help"),
    ("-c", "import jaxpeft"),
  ],
  ids=" ".join,
)
def test_help_imports_nothing_large(words):
  assert not imported(*words) & {*LARGE, "numpy"}


def test_a_run_imports_no_statistics_and_no_plots():
  text = (ROOT / "train.py").read_text()
  lines = re.findall(r"^ +((?:from jaxpeft|import jax).*)", text, re.M)
  assert len(lines) > 5
  found = imported("-c", "\n".join(lines))
  assert "jax" in found
  assert not found & {"scipy", "matplotlib", "pyarrow", "tensorboardX", "torch", "gguf"}


def test_doctor_names_the_caches_and_their_sizes(tmp_path):
  (tmp_path / "svd").mkdir()
  (tmp_path / "svd" / "x").write_bytes(bytes(50_000_000))
  env = dict(JAXPEFT_CACHE=str(tmp_path), JAXPEFT_SVD_CACHE_GB="0.5")
  env |= dict(JAX_PLATFORMS="cpu", PYTHONPATH=str(ROOT), JAXPEFT_COMPILED_CACHE_GB="0")
  done = subprocess.run(
    [sys.executable, "-m", "jaxpeft", "doctor"],
    cwd=ROOT, env=os.environ | env, capture_output=True, text=True, check=True,
  )  # fmt: skip
  line = f"{tmp_path / 'svd'}: singular value decompositions, 0.05 of at most 0.5 GB"
  assert line in done.stdout
  assert "programs are compiled anew" in done.stdout
