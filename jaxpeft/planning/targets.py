"""Devices to compile for that need not be there: GPUs, and slices of TPUs.

A target is `cpu`, a GPU as `h100` or `a100-40gb`, N of them as `h100x8`, or a TPU's
generation and topology as `v5e:4x4`.
"""

import importlib.util
import math
import os
import re

import jax

from jaxpeft.errors import InputError

# Facts about a device that XLA:GPU plans with. Source: NVIDIA's data sheets, CUDA's
# table of compute capabilities 8.0 and 9.0, and the memory that such devices report.
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
_WHEELS = {  # module: what is needed to compile
  "cuda": ("jax_plugins.xla_cuda13", "jax_cuda13_plugin"),
  "tpu": ("libtpu",),
}


def devices(target: str) -> list:
  """The devices of a target: this machine's first CPU, or such as are only described.

  Raises:
    InputError: an unknown target, or what compiles for it is not installed.
  """
  kind = _kind(target)
  if not can_compile_for(target):
    raise InputError(
      f"to compile for {target} without one, install what does: "
      + {
        "cuda": "pip install --no-deps --target DIRECTORY "
        f"jax-cuda13-plugin=={jax.__version__} jax-cuda13-pjrt=={jax.__version__}, and "
        "set PYTHONPATH=DIRECTORY for this",
        "tpu": "pip install libtpu, in the version that jax[tpu] of JAX "
        f"{jax.__version__} names",
      }[kind]
    )
  if kind == "cpu":
    return jax.devices("cpu")[:1]
  from jax.experimental import topologies

  if kind == "cuda":
    name, count = re.fullmatch(_GPU, target).groups()
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
    small = math.prod(sides) < 4  # than a host has
    host = dict(chips_per_host_bounds=(*sides, 1)[:3]) if small else {}
    try:
      found = topologies.get_topology_desc(target, "tpu", **host)
    except Exception as e:
      reason = str(e).strip().split("\n")[0]
      raise InputError(f"target {target!r} is no slice of TPUs: {reason}") from e
  return list(found.devices)


def prepare(target: str):
  """Sets what must be set before JAX looks for devices, to compile without one."""
  settings = {
    "cpu": {},
    "cuda": dict(JAX_SKIP_CUDA_CONSTRAINTS_CHECK="1", CUDA_VISIBLE_DEVICES="-1"),
    # Else libtpu asks the network where it is, and JAX takes it for a device.
    "tpu": dict(
      JAX_PLATFORMS="cpu",
      TPU_SKIP_MDS_QUERY="1",
      TPU_ACCELERATOR_TYPE="v5litepod-16",
      TPU_WORKER_HOSTNAMES="localhost",
      ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # there is no TPU that only one may have
    ),
  }
  for name, value in settings[_kind(target)].items():
    os.environ.setdefault(name, value)


def compiler_options(target: str) -> dict[str, float]:
  """Those that plan memory in a tenth of the time; a TPU's default takes minutes."""
  if _kind(target) != "tpu":
    return {}
  return dict(exec_time_optimization_effort=-1.0, memory_fitting_effort=-1.0)


def can_compile_for(target: str) -> bool:
  """Whether what compiles for a target is installed."""
  return all(map(_has, _WHEELS.get(_kind(target), ())))


def _kind(target: str) -> str:
  if target == "cpu":
    return "cpu"
  if re.fullmatch(_GPU, target):
    return "cuda"
  if re.fullmatch(_TPU, target):
    return "tpu"
  raise InputError(
    f"unknown target {target!r}; there are cpu, {', '.join(_GPUS)}, with xN for N of "
    "them, and TPUs as v5e:4x4 or v5p:4x4x4"
  )


def _has(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ImportError:
    return False


def _text(fields: dict) -> str:
  """A protocol buffer's text form."""
  return " ".join(
    f"{name} {{ {_text(x)} }}" if isinstance(x, dict) else f"{name}: {x}"
    for name, x in fields.items()
  )
