"""The memory that a run needs: its real training step, compiled on shapes for a device.

No weight is read, and no device of that kind is needed. The sizes of arguments are
exact; the rest is the compiler's plan of buffers. It does not include the driver's
context, workspaces of libraries, or fragmentation.
"""

import contextlib
import math
from typing import NamedTuple

import jax
from jax.extend.core import Literal
from jax.sharding import NamedSharding, PartitionSpec

from jaxpeft import experiment, model
from jaxpeft.console import human
from jaxpeft.linear import is_node
from jaxpeft.objectives import cross_entropy
from jaxpeft.parallel import sharding
from jaxpeft.planning import collectives, targets
from jaxpeft.quantization import nf4
from jaxpeft.training import compiled_bytes, step


class Plan(NamedTuple):
  """Bytes of one training step, on one device."""

  target: str
  devices: int
  base: int  # frozen weights that are not in 4 bits, and frozen factors
  quantized: int  # weights in 4 bits, their scales included
  scales: int  # of `quantized`
  trainable: int
  optimizer: int
  batch: int
  temporaries: int  # saved activations, gradients, logits, workspace: compiled
  total: int  # the peak
  traced: dict[str, int]  # parts of `temporaries`, see `count`; empty on many devices
  collectives: list  # `collectives.Collective`s of one step
  flops: float | None  # XLA's count, which counts a loop's body once; None for GPUs
  weights: int  # numbers in the model, before it is adapted

  def parts(self) -> dict[str, int]:
    """The parts that add up to the total, except for alignment."""
    names = "base", "quantized", "trainable", "optimizer", "batch", "temporaries"
    return {name: getattr(self, name) for name in names}

  def __str__(self) -> str:
    many = f", on each of {self.devices} devices" if self.devices > 1 else ""
    lines = [f"one training step, compiled for {self.target}{many}:"]
    lines += map(_line, (self.parts() | dict(total=self.total)).items())
    if self.quantized:
      lines[2] += f"  ({self.scales / 1e6:,.1f} MB of them scales)"
    if self.traced:
      rest = self.temporaries - sum(self.traced.values())
      lines += ["of the temporaries, counted by tracing:"]
      lines += map(_line, (self.traced | dict(rest=rest)).items())
    if self.devices > 1:
      lines += ["collectives of a step:"]
      lines += [
        f"  {x.kind:<20}{x.dtype:<6}{x.count:>6} x {x.bytes / 1e6:>11,.1f} MB in all"
        for x in self.collectives
      ] or ["  none"]
    low, middle, high = (human(self.weights * n) for n in (12, 16, 18))
    lines += [
      f"rule of thumb: all {human(self.weights)} weights trained with Adam, without "
      f"activations: {low}B (bfloat16 weights and gradients), {middle}B (float32), "
      f"{high}B (mixed precision)"
    ]
    return "\n".join(lines)


def _line(part) -> str:
  name, size = part
  return f"  {name:<12}{size / 1e6:>12,.1f} MB"


def plan(config, target: str = "cpu") -> Plan:
  """Compiles the training step of a config and reads the compiler's plan.

  Args:
    config: of a run, as `train.py` takes it; its mesh is laid over the target.
    target: see `targets`. For a CPU, bfloat16 is no guide: XLA:CPU keeps float32
      copies.
  Raises:
    InputError: an unknown target, the mesh does not fit it, or the wheels that compile
      for it are missing.
  """
  devices = targets.devices(target)
  many, t = len(devices) > 1, config.train
  exp = experiment.abstract(config, devices)
  batch = batch_shapes(exp)
  mesh = jax.tree.leaves(exp.state)[0].sharding.mesh
  net = exp.model.transformer
  with jax.set_mesh(mesh) if many else contextlib.nullcontext():
    rows, length = t.batch_size // t.accumulate, config.data.max_tokens
    sharding.check(net.config, rows, length, bool(config.model.quantize))
    lowered = exp.make_step().lower(exp.state, exp.frozen, batch)
  compiled = lowered.compile(targets.compiler_options(target))
  leaves = jax.tree.leaves(exp.frozen, is_leaf=lambda x: isinstance(x, nf4.NF4))
  packed = [x for x in leaves if is_node(x)]
  return Plan(
    target=target,
    devices=len(devices),
    base=_bytes(exp.frozen) - _bytes(packed),
    quantized=_bytes(packed),
    scales=_bytes(packed) - _bytes([x.codes for x in packed]),
    trainable=_bytes(exp.state.trainable),
    optimizer=_bytes(exp.state.opt),
    batch=_bytes(batch),
    temporaries=compiled_bytes.temporary(compiled),
    total=compiled_bytes.planned(compiled),
    traced={} if many else count(exp),
    collectives=collectives.of(compiled.as_text() or "") if many else [],
    flops=(compiled.cost_analysis() or {}).get("flops"),
    weights=sum(x.size for x in jax.tree.leaves(model.shapes(net.config))),
  )


def count(exp: experiment.Experiment) -> dict[str, int]:
  """Bytes that a step holds for a while, found by tracing, without a compiler.

  "activations" are what the forward pass hands to the backward pass in the device's
  memory, and "logits" those of the largest chunk. Gradients are float32, as everything
  that is trained.

  Args:
    exp: from `experiment.abstract`.
  """
  state, frozen, batch = exp.state, exp.frozen, batch_shapes(exp)
  net = exp.model.transformer
  micro = {k: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for k, x in batch.items()}
  if exp.objective.random:
    micro["key"] = jax.eval_shape(lambda: jax.random.key(0))
  loss = step.make_loss(net, exp.objective)

  def residuals(trainable, frozen, batch):
    return jax.vjp(lambda x: loss(x, frozen, batch), trainable, has_aux=True)[1]

  jaxpr = jax.make_jaxpr(residuals)(state.trainable, frozen, micro).jaxpr
  given = {*jaxpr.invars, *jaxpr.constvars}
  new = {x for x in jaxpr.outvars if not isinstance(x, Literal) and x not in given}
  rows, length = micro["tokens"].shape
  length = exp.objective.scored(length)
  return dict(
    gradients=_bytes(state.trainable),
    activations=sum(
      x.aval.size * x.aval.dtype.itemsize
      for x in new
      if x.aval.memory_space != jax.memory.Space.Host
    ),
    logits=cross_entropy.chunk_bytes(rows, length, net.config.vocab_size),
  )


def batch_shapes(exp: experiment.Experiment) -> dict:
  """The shapes of a step's microbatches, with their rows cut as `place_batch` does."""
  mesh = jax.tree.leaves(exp.state)[0].sharding.mesh
  spec = PartitionSpec(None, ("data", "fsdp")) if mesh.size > 1 else PartitionSpec()
  return {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
    for name, x in exp.batch(0).items()
  }


def _bytes(tree) -> int:
  """On one device."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )
