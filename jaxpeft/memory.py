"""What a run needs, compiled: the real training step on shapes, for a given device.

No weight is read and no device of that kind is needed. Arguments are exact; the rest is
the compiler's own plan of buffers. Not in it: the driver's context, workspaces of
libraries, fragmentation.
"""

import contextlib
import math
from typing import NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxpeft import (
  adapters,
  model,
  nf4,
  optim,
  partitions,
  report,
  sharding,
  targets,
  tokens,
  training,
)
from jaxpeft.data import batches
from jaxpeft.linear import is_node


class Plan(NamedTuple):
  """Bytes of one training step, on one device."""

  target: str
  devices: int
  base: int  # frozen weights that are not in 4 bits, and frozen factors
  quantised: int  # weights in 4 bits, their scales included
  trainable: int
  optimiser: int
  batch: int
  temporaries: int  # activations kept, gradients, logits, workspace: compiled
  total: int  # of all: the peak

  def __str__(self) -> str:
    many = f", on each of {self.devices} devices" if self.devices > 1 else ""
    lines = [f"one training step, compiled for {self.target}{many}:"]
    for name, size in zip(self._fields[2:], self[2:], strict=True):
      lines.append(f"  {name:<12}{size / 1e6:>12,.1f} MB")
    return "\n".join(lines)


def compile_step(config, target: str = "cpu"):
  """(compiled training step, its arguments' shapes with their shardings, devices).

  Args:
    config: of a run, as `train.py` takes it; its mesh is laid over the target.
    target: see `targets`. For a CPU, bfloat16 is no guide: XLA:CPU keeps float32
      copies.
  Raises:
    InputError: an unknown target, the mesh does not fit it, or the wheels that compile
      for it are missing.
  """
  devices = targets.devices(target)
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
  sizes = {name: config.mesh[name] for name in ("data", "fsdp", "tensor")}
  mesh = sharding.named(
    sharding.fill(sizes, len(devices)), config.mesh.sequence, devices
  )
  trees = (state, frozen, batch)
  if len(devices) == 1:
    places = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), trees)
  else:
    rows = NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp")))
    places = (
      *(sharding.shardings(tree, mesh) for tree in trees[:2]),
      jax.tree.map(lambda _: rows, batch),
    )
  arguments = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), trees, places
  )
  selection = tokens.Selection(**config.tokens)
  step = training.make_step(net, tx, t.neftune, config.seed, selection)
  with jax.set_mesh(mesh) if len(devices) > 1 else contextlib.nullcontext():
    rows = t.batch_size // t.accumulate
    sharding.check(net.config, rows, config.data.max_tokens, bool(m.quantize))
    lowered = step.lower(*arguments)
  return lowered.compile(targets.compiler_options(target)), arguments, len(devices)


def plan(config, target: str = "cpu") -> Plan:
  """Compiles the training step of a config and reads the compiler's plan.

  Args and errors as `compile_step` has them.
  """
  compiled, (state, frozen, batch), devices = compile_step(config, target)
  packed = [
    x
    for x in jax.tree.leaves(frozen, is_leaf=lambda x: isinstance(x, nf4.NF4))
    if is_node(x)
  ]
  return Plan(
    target=target,
    devices=devices,
    base=_bytes(frozen) - _bytes(packed),
    quantised=_bytes(packed),
    trainable=_bytes(state.trainable),
    optimiser=_bytes(state.opt),
    batch=_bytes(batch),
    temporaries=compiled.memory_analysis().temp_size_in_bytes,
    total=report.planned_bytes(compiled),
  )


def _bytes(tree) -> int:
  """On one device."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )
