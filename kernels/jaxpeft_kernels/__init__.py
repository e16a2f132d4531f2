"""jaxpeft's kernels for NVIDIA GPUs and TPUs, each with a reference in plain JAX.

GPU kernels are written in Triton and called with jax-triton; TPU kernels are written in
Pallas. `by_platform` returns those that can be built here. The references (`*_ref`)
always work. This package imports neither jaxpeft nor, until a kernel is called, Triton.
"""

import functools
import importlib
import importlib.util

from jaxpeft_kernels import nf4
from jaxpeft_kernels.bridge import available
from jaxpeft_kernels.nf4 import dequantize_ref, matmul_ref

__all__ = ["by_platform", "dequantize_ref", "matmul_ref"]


@functools.cache
def by_platform() -> dict:
  """{platform: module with `dequantize` and `matmul`} that can be built here.

  "cuda" needs jax-triton, and "tpu" needs libtpu.
  """
  found = {"cuda": nf4} if available() else {}
  if importlib.util.find_spec("libtpu"):
    found["tpu"] = importlib.import_module("jaxpeft_kernels.nf4_pallas")
  return found
