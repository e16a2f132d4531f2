"""All contact with names that change from version to version: jax-triton's, JAX's.

Works with 0.3.1 and with 0.4 (which names the results `out_type`). A kernel's arguments
are in jax-triton's order: arrays and numbers in, arrays out, then constants.
"""

import functools
import importlib
import inspect
import re

import jax
from jax.interpreters import partial_eval

_H100 = 90  # compute capability compiled for where no GPU is to be asked


@functools.cache
def _jax_triton():
  """The module, or None.

  Versions before 0.4 cannot be imported without JAX's CUDA plugin.
  """
  try:
    module = importlib.import_module("jax_triton")
  except ImportError:
    return None
  primitive = module.triton_lib.triton_kernel_call_p
  rule = partial_eval.dce_rules.get(primitive)
  if rule:
    # 0.4.0's rule for results that nobody uses lacks an argument that JAX 0.12 gives.
    partial_eval.dce_rules[primitive] = lambda used, *rest: rule(used, rest[-1])
  return module


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
  _use_old_assembler()
  triton_call = _jax_triton().triton_call
  names = inspect.signature(triton_call).parameters
  result = {"out_type" if "out_type" in names else "out_shape": out}
  y = triton_call(
    *arguments,
    kernel=kernel,
    grid=grid,
    num_warps=warps,
    num_stages=stages,
    compute_capability=None if _capabilities() else _H100,
    **result,
    **constants,
  )
  # In a `jax.shard_map` the result differs between devices if an argument does.
  axes = {axis for x in arguments for axis in _varying(x)}
  return jax.lax.pcast(y, tuple(sorted(axes)), to="varying") if axes else y


def varying_as(arguments, shape, dtype):
  """(arguments, jax.ShapeDtypeStruct) for a Pallas call in, or out of, `jax.shard_map`.

  Args:
    arguments: arrays. If one differs between devices, all shall, and so the result.
    shape: of the result.
    dtype: of the result.
  """
  axes = {axis for x in arguments for axis in _varying(x)}
  if not axes:
    return arguments, jax.ShapeDtypeStruct(shape, dtype)
  names = inspect.signature(jax.ShapeDtypeStruct.__init__).parameters
  kind = dict(vma=frozenset(axes))
  if "vma" not in names:  # named so since JAX 0.10.2
    kind = dict(manual_axis_type=jax.sharding.ManualAxisType(varying=frozenset(axes)))
  cast = [
    jax.lax.pcast(x, tuple(sorted(axes - set(_varying(x)))), to="varying")
    if axes - set(_varying(x))
    else x
    for x in arguments
  ]
  return cast, jax.ShapeDtypeStruct(shape, dtype, **kind)


def _use_old_assembler():
  """Has Triton write what JAX's assembler can read.

  Since 3.9 it writes, for an H100 too, the language of its newer assembler (CUDA 13.4);
  JAX assembles that again with the one it finds, which may be older, and refuses.
  """
  if all(c < 10 for c in _capabilities()):
    knobs = importlib.import_module("triton").knobs.nvidia
    knobs.ptxas_blackwell = knobs.ptxas.path


def _capabilities() -> list[float]:
  """Compute capabilities of the NVIDIA GPUs here; what AMD's have is no number."""
  names = [getattr(d, "compute_capability", "") for d in jax.local_devices()]
  return [float(x) for x in names if re.fullmatch(r"\d+\.\d+", x)]


def _varying(x):
  """Axes of a `jax.shard_map`'s mesh along which x differs."""
  aval = jax.typeof(x)
  # Named so since JAX 0.10.2.
  kind = getattr(aval, "manual_axis_type", None)
  return aval.vma if kind is None else kind.varying
