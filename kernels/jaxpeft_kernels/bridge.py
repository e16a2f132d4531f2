"""All that is said to jax-triton, whose names change from version to version.

Works with 0.3.1 and with 0.4 (which names the results `out_type`). A kernel's arguments
are in jax-triton's order: arrays and numbers in, arrays out, then constants.
"""

import functools
import importlib
import inspect

import jax

_H100 = 90  # compute capability compiled for where no GPU is to be asked


@functools.cache
def _jax_triton():
  """The module, or None.

  Versions before 0.4 cannot be imported without JAX's CUDA plugin.
  """
  try:
    return importlib.import_module("jax_triton")
  except ImportError:
    return None


def available() -> bool:
  """Whether kernels can be lowered here: for the GPU at hand, or for an H100."""
  return _jax_triton() is not None


def call(kernel, *arguments, out, grid, warps: int, stages: int, **constants):
  """Traces a Triton kernel into a JAX computation, for CUDA only; no AD and no vmap.

  Args:
    kernel: a `triton.jit` function.
    *arguments: its inputs, arrays and whole numbers.
    out: jax.ShapeDtypeStruct of its result.
    grid: tuple of at most three whole numbers, of programs.
    warps: of each program.
    stages: of the pipeline of loads.
    **constants: its `tl.constexpr` arguments.
  """
  triton_call = _jax_triton().triton_call
  names = inspect.signature(triton_call).parameters
  result = {"out_type" if "out_type" in names else "out_shape": out}
  y = triton_call(
    *arguments,
    kernel=kernel,
    grid=grid,
    num_warps=warps,
    num_stages=stages,
    compute_capability=None if _has_gpu() else _H100,
    **result,
    **constants,
  )
  # In a `jax.shard_map` the result differs between devices if an argument does.
  axes = {axis for x in arguments for axis in _varying(x)}
  return jax.lax.pcast(y, tuple(sorted(axes)), to="varying") if axes else y


def _has_gpu() -> bool:
  return any(d.platform == "gpu" for d in jax.local_devices())


def _varying(x):
  """Axes of a `jax.shard_map`'s mesh along which x differs."""
  aval = jax.typeof(x)
  # Named so since JAX 0.10.2.
  kind = getattr(aval, "manual_axis_type", None)
  return aval.vma if kind is None else kind.varying
