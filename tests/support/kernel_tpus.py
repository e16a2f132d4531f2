"""The Pallas kernels compiled for TPUs, without one: for the slices that are named.

Run by test_pallas; needs libtpu.
"""

import sys

import jax
import jax.numpy as jnp
from jaxpeft_kernels import nf4_pallas

from jaxpeft.planning import targets
from jaxpeft.quantization.nf4_matmul import CODE, FUSED_ROWS

# Inputs and outputs of Gemma 2B, Qwen2.5-7B and LLaMA2-70B.
SHAPES = ((2048, 16384), (18944, 3584), (28672, 8192))


def main(target: str):
  """Compiles both kernels for every shape, in bfloat16 and float32."""
  place = jax.sharding.SingleDeviceSharding(targets.devices(target)[0])

  def array(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

  def compiled(f, *args) -> str:
    return jax.jit(f).lower(*args).compile().as_text()

  for inputs, outputs in SHAPES:
    codes = array((outputs, inputs // 2), jnp.uint8)
    weight = codes, array((outputs, inputs // 64), jnp.float32)
    for dtype in (jnp.bfloat16, jnp.float32):
      dense = compiled(lambda *w, t=dtype: nf4_pallas.dequantize(*w, CODE, t), *weight)
      assert "tpu_custom_call" in dense, (inputs, dtype)
      for rows in (1, FUSED_ROWS) if dtype == jnp.bfloat16 else (FUSED_ROWS,):
        x = array((rows, inputs), dtype)
        product = compiled(lambda x, *w: nf4_pallas.matmul(x, *w, CODE), x, *weight)
        assert "tpu_custom_call" in product, (inputs, dtype, rows)
  print(f"compiled for {target}")


if __name__ == "__main__":
  targets.prepare(sys.argv[1])
  for target in sys.argv[1:]:
    main(target)
