"""Hides differences between versions of jax-triton and JAX from the kernels.

Works with jax-triton 0.3.1 and 0.4. A Triton kernel takes its arguments in jax-triton's
order: input arrays and numbers, output arrays, then constants.
"""

import functools
import importlib
import inspect
import re

import jax
from jax.interpreters import partial_eval

_H100 = 90  # compute capability to compile for if this machine has no GPU


@functools.cache
def _jax_triton():
  """The module jax_triton, or None if it cannot be imported.

  Versions before 0.4 cannot be imported without JAX's CUDA plugin.
  """
  try:
    module = importlib.import_module("jax_triton")
  except ImportError:
    return None
  primitive = module.triton_lib.triton_kernel_call_p
  rule = partial_eval.dce_rules.get(primitive)
  if rule:
    # The rule that removes unused results lacks, in jax-triton 0.4.0, an argument that
    # JAX 0.12 passes.
    partial_eval.dce_rules[primitive] = lambda used, *rest: rule(used, rest[-1])
  return module


def available() -> bool:
  """Whether Triton kernels can be lowered, for this machine's GPU or else an H100."""
  return _jax_triton() is not None


def capability() -> int:
  """The compute capability that `call` compiles for, such as 90 for 9.0."""
  found = _capabilities()
  return round(10 * found[0]) if found else _H100


def call(kernel, *arguments, out, grid, warps: int, stages: int, **constants):
  """The result of a Triton kernel, as part of a JAX computation for CUDA.

  It supports neither differentiation nor vmap.

  Args:
    kernel: a `triton.jit` function.
    *arguments: its inputs, arrays and integers.
    out: jax.ShapeDtypeStruct of its result, or a list of them for several.
    grid: the number of programs along each of up to three axes.
    warps: number of warps per program.
    stages: number of stages of the load pipeline.
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
  # Inside `jax.shard_map`, the result varies over the mesh axes that any argument
  # varies over.
  axes = {axis for x in arguments for axis in _varying(x)}
  return jax.lax.pcast(y, tuple(sorted(axes)), to="varying") if axes else y


def varying_as(arguments, shape, dtype):
  """(arguments, jax.ShapeDtypeStruct of the result) for a Pallas call.

  Inside `jax.shard_map`, all arguments and the result are marked as varying over the
  mesh axes that any argument varies over. Elsewhere nothing is marked.

  Args:
    arguments: arrays.
    shape: shape of the result.
    dtype: dtype of the result.
  """
  axes = {axis for x in arguments for axis in _varying(x)}
  if not axes:
    return arguments, jax.ShapeDtypeStruct(shape, dtype)
  names = inspect.signature(jax.ShapeDtypeStruct.__init__).parameters
  kind = dict(vma=frozenset(axes))
  if "vma" not in names:  # renamed in JAX 0.10.2
    kind = dict(manual_axis_type=jax.sharding.ManualAxisType(varying=frozenset(axes)))
  cast = [
    jax.lax.pcast(x, tuple(sorted(axes - set(_varying(x)))), to="varying")
    if axes - set(_varying(x))
    else x
    for x in arguments
  ]
  return cast, jax.ShapeDtypeStruct(shape, dtype, **kind)


def _use_old_assembler():
  """Makes Triton emit PTX that JAX's assembler accepts.

  Since 3.9 Triton emits the PTX version of its newer assembler (CUDA 13.4), even for an
  H100. JAX assembles that PTX again with its own ptxas, which may be older and then
  rejects it.
  """
  if all(c < 10 for c in _capabilities()):
    knobs = importlib.import_module("triton").knobs.nvidia
    knobs.ptxas_blackwell = knobs.ptxas.path


def _capabilities() -> list[float]:
  """Compute capabilities of the local NVIDIA GPUs; those of AMD GPUs are no numbers."""
  names = [getattr(d, "compute_capability", "") for d in jax.local_devices()]
  return [float(x) for x in names if re.fullmatch(r"\d+\.\d+", x)]


def _varying(x):
  """The mesh axes of a `jax.shard_map` over which x varies."""
  aval = jax.typeof(x)
  # JAX 0.10.2 renamed `vma`.
  kind = getattr(aval, "manual_axis_type", None)
  return aval.vma if kind is None else kind.varying
