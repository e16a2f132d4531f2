"""GPU kernels as far as a CPU can tell: numbers, code, where they are called; bench.

Each is a script in a process of its own, for what must be set before imports.
"""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpeft.quantization import nf4, nf4_matmul
from tests.support import aot
from tests.support.commands import run

jaxpeft_kernels = pytest.importorskip("jaxpeft_kernels")
PLUGIN = ("triton", "jax_triton", "jax_cuda13_plugin")


@pytest.mark.parametrize("shape", [(256, 40), (384, 64)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_references_are_our_weights(shape, dtype):
  node = nf4.quantize(jax.random.normal(jax.random.key(0), shape).astype(dtype))
  args = node.codes, nf4.scales(node), nf4.CODE
  w = jaxpeft_kernels.dequantize_ref(*args, dtype)
  np.testing.assert_array_equal(w.T, node.dense())
  x = jax.random.normal(jax.random.key(1), (5, shape[0]), dtype)
  got, want = jaxpeft_kernels.matmul_ref(x, *args), node.matmul(x)
  # Sums of a few hundred products, in float32 and in another order; then one rounding.
  limit = dict(rtol=1e-5, atol=1e-4) if dtype == "float32" else dict(rtol=2**-7)
  np.testing.assert_allclose(*(np.asarray(y, np.float32) for y in (got, want)), **limit)


def test_numbers_in_tritons_interpreter(tmp_path):
  env = aot.environment("triton") | dict(TRITON_CACHE_DIR=str(tmp_path))
  assert "are right" in run(env, "tests/support/kernel_interpreter.py")


def test_code_for_an_h100_spills_nothing(tmp_path):
  env = aot.environment("triton") | dict(TRITON_CACHE_DIR=str(tmp_path))
  assert "code is right" in run(env, "tests/support/kernel_code.py")


@pytest.mark.slow
def test_called_in_cuda_only_and_right_on_a_mesh():
  out = run(
    aot.environment(*PLUGIN), "tests/support/kernel_lowering.py", "lower", "cuda"
  )
  assert "lowered as meant" in out
  assert "the same on a mesh" in out


@pytest.mark.slow
def test_meshes_work_as_without_where_kernels_are_installed():
  """The tests of weights in 4 bits on a mesh again, with products cut by our rules."""
  env = aot.environment(*PLUGIN)
  files = (
    "tests/parallel/test_sharding.py",
    "tests/evaluation/test_sharded_evaluation.py",
  )
  out = run(
    env,
    "-m",
    "pytest",
    "-v",
    "-n0",
    "-k",
    "4_bits or evaluates or SVFT-nf4-nf4",
    *files,
  )
  assert "passed" in out


def test_a_step_for_an_h100_keeps_no_dequantized_weight():
  env = aot.environment(*PLUGIN, "jax_plugins.xla_cuda13")
  out = run(env, "tests/support/kernel_lowering.py", "compile", "cuda")
  assert "with barriers" in out
  assert "each its own part" in out


@pytest.mark.slow
def test_the_bench_is_rehearsed_and_wants_a_gpu(tmp_path):
  env, file = aot.environment(), tmp_path / "nf4.json"
  out = run(env, "kernels/bench/nf4.py", "--rehearse", "--copies=2", f"--out={file}")
  assert "numbers: dequantized bit for bit" in out
  table = json.loads(file.read_text())["us"]
  assert len(table) == 2
  for row in table:
    assert row["dequantize"] > 0
    assert row["plain"] > 0
    assert (row["codes"] is None) == (row["product"] == "dx")
    assert row["floor"] < row["floor_bfloat16"]
  if any(d.platform == "gpu" for d in jax.local_devices()):
    return
  command = [sys.executable, "kernels/bench/nf4.py"]
  out = subprocess.run(command, capture_output=True, text=True, cwd=aot.ROOT, env=env)
  assert out.returncode == 2
  assert out.stderr.startswith("error: no NVIDIA GPU")


def test_without_the_kernels_products_are_plain_jax(monkeypatch):
  monkeypatch.setitem(sys.modules, "jaxpeft_kernels", None)
  nf4_matmul._kernel_package.cache_clear()
  try:
    node = nf4.quantize(jax.random.normal(jax.random.key(0), (128, 8)))
    np.testing.assert_allclose(
      node.matmul(jnp.ones((3, 128))), jnp.ones((3, 128)) @ node.dense(), atol=1e-4
    )
    assert not nf4_matmul.kernels_for(node.codes)
  finally:
    nf4_matmul._kernel_package.cache_clear()
