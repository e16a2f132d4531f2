"""Targets: devices to compile for, which this machine need not have.

XLA can compile a program for a device from a description of it, without the device.
The compiled program cannot run here, but its memory plan, its FLOPs and its collectives
can be read. A target is the name of such devices:
- `cpu`: this machine's first CPU device;
- `h100`, `a100-40gb`, `a100-80gb`: one NVIDIA GPU;
- `h100x8`: eight such GPUs;
- `v5e:4x4`, `v5p:4x4x4`: a slice of TPUs, as generation and topology.
"""

import importlib.util
import math
import os
import re
from typing import Any

import jax

from jaxpeft.errors import InputError

# The description of a GPU that XLA:GPU needs to compile for it. Sources: NVIDIA's data
# sheets, CUDA's table of compute capabilities 8.0 and 9.0, and the memory sizes that
# such devices report.
_GPU_INFO = dict(
  threads_per_block_limit=1024,
  threads_per_warp=32,
  shared_memory_per_block=48 * 2**10,
  threads_per_core_limit=2048,
  block_dim_limit_x=2**31 - 1,
  block_dim_limit_y=2**16 - 1,
  block_dim_limit_z=2**16 - 1,
  registers_per_core_limit=2**16,
  registers_per_block_limit=2**16,
)
_A100 = dict(
  shared_memory_per_core=164 * 2**10,
  shared_memory_per_block_optin=163 * 2**10,
  core_count=108,
  fpus_per_core=64,
  l2_cache_size=40 * 2**20,
  clock_rate_ghz=1.41,
  cuda_compute_capability=dict(major=8),
)
_GPUS = {
  "h100": dict(
    shared_memory_per_core=228 * 2**10,
    shared_memory_per_block_optin=227 * 2**10,
    core_count=132,
    fpus_per_core=128,
    memory_bandwidth=3_352_320_000_000,
    l2_cache_size=50 * 2**20,
    clock_rate_ghz=1.98,
    device_memory_size=84_929_347_584,
    cuda_compute_capability=dict(major=9),
  ),
  "a100-40gb": _A100
  | dict(memory_bandwidth=1_555_000_000_000, device_memory_size=42_505_273_344),
  "a100-80gb": _A100
  | dict(memory_bandwidth=2_039_000_000_000, device_memory_size=85_167_046_656),
}
_GPU, _TPU = rf"({'|'.join(_GPUS)})(?:x([1-9]\d*))?", r"(v\d\w*|tpu\d\w*):\d+(x\d+)*"
_WHEELS = {  # kind of target -> modules that compiling for it needs
  "cuda": ("jax_plugins.xla_cuda13", "jax_cuda13_plugin"),
  "tpu": ("libtpu",),
}


def devices(target: str) -> list:
  """The JAX devices of a target: real for `cpu`, and otherwise only descriptions.

  Raises:
    InputError: the target is unknown, or its compiler is not installed.
  """
  kind = _kind(target)
  if not can_compile_for(target):
    raise InputError(
      f"to compile for target {target} on this machine, install its compiler: "
      + {
        "cuda": "pip install --no-deps --target DIRECTORY "
        f"jax-cuda13-plugin=={jax.__version__} jax-cuda13-pjrt=={jax.__version__}, and "
        "set PYTHONPATH=DIRECTORY for this command",
        "tpu": "pip install libtpu, in the version that jax[tpu] of JAX "
        f"{jax.__version__} requires",
      }[kind]
    )
  if kind == "cpu":
    return jax.devices("cpu")[:1]
  from jax.experimental import topologies

  if kind == "cuda":
    name, _, count = target.partition("x")
    facts = dict(
      gpu_device_info=_GPU_INFO | _GPUS[name],
      platform_name='"CUDA"',
      dnn_version_info=dict(major=9, minor=7),
      runtime_version=dict(major=13),
      device_description_str=f'"NVIDIA {name.upper()}"',
    )
    found = topologies.get_topology_desc(
      platform="cuda", target_config=_text(facts), topology=f"1x1x{count or 1}"
    )
  else:
    sides = [int(n) for n in target.split(":")[1].split("x")]
    small = math.prod(sides) < 4  # fewer chips than one host has
    host = dict(chips_per_host_bounds=(*sides, 1)[:3]) if small else {}
    try:
      found = topologies.get_topology_desc(target, "tpu", **host)
    except Exception as e:
      reason = str(e).strip().split("\n")[0]
      raise InputError(f"target {target!r} is not a slice of TPUs: {reason}") from e
  return list(found.devices)


def prepare(target: str):
  """Sets the environment variables that compiling for a target needs.

  Call it before JAX first looks for devices. Variables that are already set stay.
  """
  settings = {
    "cpu": {},
    "cuda": dict(JAX_SKIP_CUDA_CONSTRAINTS_CHECK="1", CUDA_VISIBLE_DEVICES="-1"),
    # Otherwise libtpu asks the network which TPU it is on, and JAX takes libtpu for a
    # device.
    "tpu": dict(
      JAX_PLATFORMS="cpu",
      TPU_SKIP_MDS_QUERY="1",
      TPU_ACCELERATOR_TYPE="v5litepod-16",
      TPU_WORKER_HOSTNAMES="localhost",
      ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # no TPU here that a second process could block
    ),
  }
  for name, value in settings[_kind(target)].items():
    os.environ.setdefault(name, value)


def compiler_options(target: str) -> Any:
  """Compiler options for planning on a target, as {name: value}.

  For TPUs they cut compilation to a tenth of its time, which by default is minutes.
  """
  if _kind(target) != "tpu":
    return {}
  return dict(exec_time_optimization_effort=-1.0, memory_fitting_effort=-1.0)


def can_compile_for(target: str) -> bool:
  """Whether the compiler for a target is installed."""
  return all(map(_has, _WHEELS.get(_kind(target), ())))


def _kind(target: str) -> str:
  """The compiler that a target needs: "cpu", "cuda" or "tpu"."""
  if target == "cpu":
    return "cpu"
  if re.fullmatch(_GPU, target):
    return "cuda"
  if re.fullmatch(_TPU, target):
    return "tpu"
  raise InputError(
    f"unknown target {target!r}; use cpu, {' or '.join(_GPUS)} (add xN for N GPUs), or "
    "a slice of TPUs such as v5e:4x4 or v5p:4x4x4"
  )


def _has(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ImportError:
    return False


def _text(fields: dict) -> str:
  """The text format of a protocol buffer with these fields."""
  return " ".join(
    f"{name} {{ {_text(x)} }}" if isinstance(x, dict) else f"{name}: {x}"
    for name, x in fields.items()
  )
