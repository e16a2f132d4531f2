"""Kernels of jaxpeft for NVIDIA GPUs and TPUs, each beside its plain JAX.

For GPUs in Triton, called with jax-triton; for TPUs in Pallas. `by_platform` tells
which can be built here; without either only plain JAX (`_ref`) can be called.
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
  """{platform: module with `dequantize` and `matmul`}, of those that can be built here.

  For CUDA that takes jax-triton, for TPUs libtpu.
  """
  found = {"cuda": nf4} if available() else {}
  if importlib.util.find_spec("libtpu"):
    found["tpu"] = importlib.import_module("jaxpeft_kernels.nf4_pallas")
  return found
