"""GPU kernels of jaxpeft: Triton, called with jax-triton; each beside its plain JAX.

Imports jax and jax-triton only. Where jax-triton is not, `available` says so, and only
the plain-JAX `_ref` of each kernel can be called.
"""

from jaxpeft_kernels.bridge import available
from jaxpeft_kernels.nf4 import dequantise, dequantise_ref, matmul, matmul_ref

__all__ = ["available", "dequantise", "dequantise_ref", "matmul", "matmul_ref"]
