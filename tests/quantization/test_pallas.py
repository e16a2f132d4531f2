"""TPU kernels as far as a CPU can tell: numbers, where they are called, code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxpeft_kernels import dequantize_ref, nf4_pallas

from jaxpeft.quantization.nf4 import CODE
from tests.support import aot
from tests.support.commands import run

# 17,408 inputs have more than 128 scales of a nibble plane; of 300 outputs the last
# program has a part; 384 inputs and float16 are left to plain JAX.
SHAPES = [(300, 1280), (40, 17408), (64, 384)]


def weight(outputs: int, inputs: int):
  """Codes and scales of a random weight [outputs, inputs]."""
  draw = np.random.default_rng(inputs)
  codes = draw.integers(0, 256, (outputs, inputs // 2), np.uint8)
  return codes, draw.uniform(0.1, 1, (outputs, inputs // 64)).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_dequantized_weights_are_those_of_plain_jax(shape, dtype):
  w = weight(*shape)
  got = nf4_pallas.dequantize(*w, CODE, dtype, interpret=True)
  np.testing.assert_array_equal(got, dequantize_ref(*w, CODE, dtype))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_products_are_those_of_float64(shape, dtype, rows):
  codes, scales = weight(*shape)
  x = jax.random.normal(jax.random.key(rows), (rows, shape[1]), dtype)
  got = nf4_pallas.matmul(x, codes, scales, CODE, interpret=True)
  assert got.dtype == dtype
  rounded = dequantize_ref(codes, scales, CODE, dtype)
  x, w, got = (np.asarray(a, np.float64) for a in (x, rounded, got))
  # Of sums of so many terms in float32; and one rounding to x's dtype.
  error = np.abs(got - x @ w.T) / (np.abs(x) @ np.abs(w).T)
  assert error.max() < 1e-6 + (dtype == jnp.bfloat16) * 2**-8


@pytest.mark.slow
def test_called_for_tpus_only_and_right_on_a_mesh():
  out = run(aot.environment(), "tests/support/kernel_lowering.py", "lower", "tpu")
  assert "lowered as meant" in out
  assert "the same on a mesh" in out


def test_a_step_for_a_tpu_keeps_no_dequantized_weight():
  env = aot.environment("libtpu")
  out = run(env, "tests/support/kernel_lowering.py", "compile", "tpu")
  assert "with barriers" in out
  assert "each its own part" in out


@pytest.mark.slow
def test_code_fits_every_kind_of_tpu():
  """At widths of real models, and up to the most rows that are multiplied so."""
  slices = "v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"
  out = run(aot.environment("libtpu"), "tests/support/kernel_tpus.py", *slices)
  assert out.count("compiled for") == len(slices)
