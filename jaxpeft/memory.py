"""What a run needs, compiled: the real training step on shapes, for a given device.

No weight is read and no device of that kind is needed. Arguments are exact; the rest is
the compiler's own plan of buffers. Not in it: the driver's context, workspaces of
libraries, fragmentation.
"""

import importlib.util
import os
from typing import NamedTuple

import jax

from jaxpeft import (
  adapters,
  model,
  nf4,
  optim,
  partitions,
  report,
  tokens,
  training,
)
from jaxpeft.data import batches
from jaxpeft.errors import InputError, unknown
from jaxpeft.linear import is_node

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
TARGETS = {"cpu": None, "h100": _H100}


class Plan(NamedTuple):
  """Bytes of one training step, on one device."""

  target: str
  base: int  # frozen weights that are not in 4 bits, and frozen factors
  quantised: int  # weights in 4 bits, their scales included
  trainable: int
  optimiser: int
  batch: int
  temporaries: int  # activations kept, gradients, logits, workspace: compiled
  total: int  # of all: the peak

  def __str__(self) -> str:
    lines = [f"one training step, compiled for {self.target}:"]
    for name, size in zip(self._fields[1:], self[1:], strict=True):
      lines.append(f"  {name:<12}{size / 1e6:>12,.1f} MB")
    return "\n".join(lines)


def plan(config, target: str = "cpu") -> Plan:
  """Compiles the training step of a config and reads the compiler's plan.

  Args:
    config: of a run, as `train.py` takes it.
    target: of `TARGETS`. For a CPU, bfloat16 is no guide: XLA:CPU keeps float32 copies.
  Raises:
    InputError: an unknown target, or the wheels that compile for it are missing.
  """
  placed = sharding(target)
  m, t = config.model, config.train
  net, _ = model.architecture(m.source, m.dtype, m.groups, m.remat, m.quantize)
  rules = adapters.from_config(config.adapt)
  tx, _ = optim.make(t.steps, **config.optim)

  def start():
    params = model.init(net, 0)
    params = nf4.quantise_tree(params) if m.quantize else params
    params = adapters.adapt(params, rules, jax.random.key(0), gradients={})
    trainable, frozen = partitions.partition(params, partitions.trainable_mask(params))
    return training.init_state(trainable, tx), frozen

  state, frozen = jax.eval_shape(start)
  empty = batches.to_arrays([[]] * t.batch_size, config.data.max_tokens)
  batch = training.split(empty, t.accumulate)

  def place(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed)

  arguments = jax.tree.map(place, (state, frozen, batch))
  selection = tokens.Selection(**config.tokens)
  step = training.make_step(net, tx, t.neftune, config.seed, selection)
  compiled = step.lower(*arguments).compile()
  packed = [
    x
    for x in jax.tree.leaves(frozen, is_leaf=lambda x: isinstance(x, nf4.NF4))
    if is_node(x)
  ]
  return Plan(
    target=target,
    base=_bytes(frozen) - _bytes(packed),
    quantised=_bytes(packed),
    trainable=_bytes(state.trainable),
    optimiser=_bytes(state.opt),
    batch=_bytes(batch),
    temporaries=compiled.memory_analysis().temp_size_in_bytes,
    total=report.planned_bytes(compiled),
  )


def prepare(target: str):
  """Sets what must be set before JAX looks for devices, to compile without one."""
  if TARGETS.get(target):
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")


def can_compile_for(target: str) -> bool:
  """Whether what compiles for a target is installed."""
  wheels = ("jax_plugins.xla_cuda13", "jax_cuda13_plugin")
  return not TARGETS.get(target) or all(map(_has, wheels))


def _has(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ImportError:
    return False


def sharding(target: str):
  """Of everything on one device of the target, which need not be there."""
  if target not in TARGETS:
    raise unknown("target", target, TARGETS)
  if not can_compile_for(target):
    raise InputError(
      f"to compile for {target} without one, install what does, of JAX's version: "
      f"pip install --no-deps --target DIRECTORY jax-cuda13-plugin=={jax.__version__} "
      f"jax-cuda13-pjrt=={jax.__version__}, and set PYTHONPATH=DIRECTORY for this"
    )
  if TARGETS[target] is None:
    return jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
  from jax.experimental import topologies

  topology = topologies.get_topology_desc(
    platform="cuda", target_config=_text(TARGETS[target]), topology="1x1x1"
  )
  mesh = topologies.make_mesh(topology, (1,), ("device",))
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def _text(fields: dict) -> str:
  """A protocol buffer's text form."""
  return " ".join(
    f"{name} {{ {_text(x)} }}" if isinstance(x, dict) else f"{name}: {x}"
    for name, x in fields.items()
  )


def _bytes(tree) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
