"""Devices to compile for that need not be there: GPUs, and slices of TPUs.

A target is `cpu`, `h100`, `h100xN`, or a TPU's generation and topology as `v5e:4x4`.
"""

import importlib.util
import os
import re

import jax

from jaxpeft.errors import InputError

# Facts about a device that XLA:GPU plans with. Source: NVIDIA's H100 data sheet and
# CUDA's table of compute capability 9.0.
_H100 = dict(
  gpu_device_info=dict(
    threads_per_block_limit=1024,
    threads_per_warp=32,
    shared_memory_per_block=48 * 2**10,
    shared_memory_per_core=228 * 2**10,
    shared_memory_per_block_optin=227 * 2**10,
    threads_per_core_limit=2048,
    core_count=132,
    fpus_per_core=128,
    block_dim_limit_x=2**31 - 1,
    block_dim_limit_y=2**16 - 1,
    block_dim_limit_z=2**16 - 1,
    memory_bandwidth=3_352_320_000_000,
    l2_cache_size=50 * 2**20,
    clock_rate_ghz=1.98,
    device_memory_size=84_929_347_584,
    cuda_compute_capability=dict(major=9),
    registers_per_core_limit=2**16,
    registers_per_block_limit=2**16,
  ),
  platform_name='"CUDA"',
  dnn_version_info=dict(major=9, minor=7),
  runtime_version=dict(major=13),
  device_description_str='"NVIDIA H100 80GB HBM3"',
)
_GPU, _TPU = r"h100(?:x(\d+))?", r"(v\d\w*|tpu\d\w*):\d+(x\d+)*"
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
    count = re.fullmatch(_GPU, target)[1] or 1
    found = topologies.get_topology_desc(
      platform="cuda", target_config=_text(_H100), topology=f"1x1x{count}"
    )
  else:
    try:
      found = topologies.get_topology_desc(target, "tpu")
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
  if re.fullmatch(_GPU, target) and target != "h100x0":
    return "cuda"
  if re.fullmatch(_TPU, target):
    return "tpu"
  raise InputError(
    f"unknown target {target!r}; there are cpu, h100, h100xN (N GPUs), and TPUs as "
    "v5e:4x4 or v5p:4x4x4"
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
