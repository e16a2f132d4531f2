"""What a run needs, compiled: the real training step on shapes, for a given device.

No weight is read and no device of that kind is needed. Arguments are exact; the rest is
the compiler's own plan of buffers. Not in it: the driver's context, workspaces of
libraries, fragmentation.
"""

import contextlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend.core import Literal
from jax.sharding import NamedSharding, PartitionSpec

from jaxpeft import adapters, experiment, model, tree
from jaxpeft.console import human
from jaxpeft.data import batches
from jaxpeft.linear import is_node
from jaxpeft.objectives import cross_entropy, token_selection
from jaxpeft.parallel import sharding
from jaxpeft.planning import collectives, targets
from jaxpeft.quantization import nf4
from jaxpeft.training import optimizer, report
from jaxpeft.training import step as training


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
  temporaries: int  # activations kept, gradients, logits, workspace: compiled
  total: int  # of all: the peak
  traced: dict[str, int]  # parts of `temporaries`, see `count`; empty on many devices
  collectives: list  # of `collectives.Collective`, in one step
  flops: float | None  # XLA's count, a loop's body once; it has none for GPUs
  weights: int  # numbers in the model, before it is adapted

  def parts(self) -> dict[str, int]:
    """What adds up to the total, but for alignment."""
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


class Described(NamedTuple):
  """A training step of which only shapes exist."""

  net: Any  # the model
  step: Callable  # (state, frozen, batch) -> (state, metrics), as `training` has it
  loss: Callable  # what it trains, see `training.make_loss`
  selection: token_selection.Selection
  arguments: tuple  # (state, frozen, batch), with their shardings
  weights: int  # numbers in the model, before it is adapted
  mesh: Any


def describe(config, devices) -> Described:
  """The training step of a run's config, on devices that need not be there.

  Raises:
    InputError: options that no run could have.
  """
  experiment.check_options(config)
  m, t = config.model, config.train
  net, _ = model.architecture(m.source, m.dtype, m.groups, m.remat, m.quantize)
  rules = adapters.from_config(config.adapt)
  tx, _ = optimizer.make(t.steps, **config.optim)

  def start():
    params = model.init(net, 0)
    params = nf4.quantize_tree(params) if m.quantize else params
    params = adapters.adapt(params, rules, jax.random.key(0), gradients={})
    trainable, frozen = tree.partition(params, tree.trainable_mask(params))
    return training.init_state(trainable, tx), frozen

  state, frozen = jax.eval_shape(start)
  plain = jax.eval_shape(lambda: model.init(net, 0))
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
  selection = token_selection.Selection(**config.tokens)
  step = training.make_step(net, tx, t.neftune, config.seed, selection)
  loss = training.make_loss(net, t.neftune, selection)
  weights = sum(x.size for x in jax.tree.leaves(plain))
  return Described(net, step, loss, selection, arguments, weights, mesh)


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
  described = describe(config, devices)
  with jax.set_mesh(described.mesh) if many else contextlib.nullcontext():
    rows, length = t.batch_size // t.accumulate, config.data.max_tokens
    sharding.check(described.net.config, rows, length, bool(config.model.quantize))
    lowered = described.step.lower(*described.arguments)
  compiled = lowered.compile(targets.compiler_options(target))
  state, frozen, batch = described.arguments
  leaves = jax.tree.leaves(frozen, is_leaf=lambda x: isinstance(x, nf4.NF4))
  packed = [x for x in leaves if is_node(x)]
  return Plan(
    target=target,
    devices=len(devices),
    base=_bytes(frozen) - _bytes(packed),
    quantized=_bytes(packed),
    scales=_bytes(packed) - _bytes([x.codes for x in packed]),
    trainable=_bytes(state.trainable),
    optimizer=_bytes(state.opt),
    batch=_bytes(batch),
    temporaries=compiled.memory_analysis().temp_size_in_bytes,
    total=report.planned_bytes(compiled),
    traced={} if many else count(described),
    collectives=collectives.of(compiled.as_text()) if many else [],
    flops=(compiled.cost_analysis() or {}).get("flops"),
    weights=described.weights,
  )


def count(described: Described) -> dict[str, int]:
  """Bytes of what a step holds for a while, by tracing it: no compiler is asked.

  "activations" are what its forward pass hands to its backward pass in the device's
  memory, and "logits" those of the largest chunk. Gradients are float32, as all that
  is trained.
  """
  state, frozen, batch = described.arguments
  micro = {k: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for k, x in batch.items()}
  micro["key"] = jax.eval_shape(lambda: jax.random.key(0))

  def kept(trainable, frozen, batch):
    return jax.vjp(lambda x: described.loss(x, frozen, batch), trainable, has_aux=True)[
      1
    ]

  jaxpr = jax.make_jaxpr(kept)(state.trainable, frozen, micro).jaxpr
  given = {*jaxpr.invars, *jaxpr.constvars}
  new = {x for x in jaxpr.outvars if not isinstance(x, Literal) and x not in given}
  rows, length = micro["tokens"].shape
  length = described.selection.count(length)
  return dict(
    gradients=_bytes(state.trainable),
    activations=sum(
      x.aval.size * x.aval.dtype.itemsize
      for x in new
      if x.aval.memory_space != jax.memory.Space.Host
    ),
    logits=cross_entropy.chunk_bytes(rows, length, described.net.config.vocab_size),
  )


def _bytes(tree) -> int:
  """On one device."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )
