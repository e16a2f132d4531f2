"""A training step of every method, relative to LoRA r=16, on the CPU, in one run.

  python benchmarks/adapter_step.py [--rounds 5]

The model of benchmarks/train_step.py, adapters on all seven projections, float32. All
steps are compiled first; then the methods take turns, a step each, so that a machine
whose speed drifts is fair to all. Memory is the compiled step's temporaries, and what
is kept for the model: frozen factors beside or instead of the weights.
"""

import argparse
import os
import statistics
import time

import jax
import numpy as np
import optax
from train_step import BATCH, LENGTH, SHAPE

import jaxpeft
from jaxpeft import model, training

METHODS = {
  "LoRA r=16": jaxpeft.LoRA(rank=16, alpha=16.0),
  "DoRA r=16": jaxpeft.DoRA(rank=16, alpha=16.0),
  "PiSSA r=16": jaxpeft.PiSSA(rank=16, alpha=16.0, iterations=4),
  "MiLoRA r=16": jaxpeft.MiLoRA(rank=16, alpha=16.0),
  "OLoRA r=16": jaxpeft.OLoRA(rank=16, alpha=16.0),
  "NoRA r=16": jaxpeft.NoRA(rank=16, alpha=16.0),
  "LoRA-GA r=16": jaxpeft.LoRAGA(rank=16, alpha=16.0),
  "LoRA-One r=16": jaxpeft.LoRAOne(rank=16, alpha=16.0),
  "LoRA-XS r=64": jaxpeft.LoRAXS(rank=64, alpha=64.0, iterations=4),
  "SVF": jaxpeft.SVF(),
  "SVFT plain": jaxpeft.SVFT("plain"),
  "SVFT banded d=8": jaxpeft.SVFT("banded", off_diagonals=8),
  "SVFT random d=8": jaxpeft.SVFT("random", off_diagonals=8),
  "SVFT topk d=8": jaxpeft.SVFT("topk", off_diagonals=8),
  "VeRA r=256": jaxpeft.VeRA(rank=256),
  "IA3": jaxpeft.IA3(),
  "Full": jaxpeft.Full(),
}


def contestant(adapter):
  """(step function, its compiled temporaries, bytes of the adapted model)."""
  config = jaxpeft.ModelConfig("llama", head_dim=64, max_positions=512, **SHAPE)
  net = jaxpeft.Transformer(config)
  params = model.init(net, 0)
  rules = {"layers_.*/(attn|mlp)/.*": adapter}
  params = jaxpeft.adapt(params, rules, jax.random.key(0), gradients={})
  held = sum(x.nbytes for x in jax.tree.leaves(params))
  trainable, frozen = jaxpeft.partition(params, jaxpeft.trainable_mask(params))
  tx = optax.adamw(1e-4)
  state = training.init_state(trainable, tx)
  tokens = np.random.default_rng(0).integers(0, 4096, (1, BATCH, LENGTH), np.int32)
  position = np.arange(LENGTH, dtype=np.int32)
  batch = dict(
    tokens=tokens,
    targets=tokens,
    weights=np.ones(tokens.shape, np.float32),
    position=np.broadcast_to(position, tokens.shape),
    segment=np.ones_like(tokens),
  )
  compiled = training.make_step(net, tx).lower(state, frozen, batch).compile()

  def step():
    nonlocal state
    clock = time.perf_counter()
    state, metrics = compiled(state, frozen, batch)
    jax.block_until_ready(metrics)
    return time.perf_counter() - clock

  size = jaxpeft.count(params).trainable
  return step, compiled.memory_analysis().temp_size_in_bytes, held, size


def main():
  """Measures and prints one table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  made = {name: contestant(adapter) for name, adapter in METHODS.items()}
  for step, *_ in made.values():
    step()
  seconds = {name: [] for name in made}
  for _ in range(args.rounds):
    for name, (step, *_) in made.items():
      seconds[name].append(step())
  first = next(iter(made))
  # Pairs of one round: the machine's drift cancels.
  ratios = {
    name: statistics.median(a / b for a, b in zip(own, seconds[first], strict=True))
    for name, own in seconds.items()
  }
  print(
    f"{os.cpu_count()} cores, {args.rounds} rounds, medians of ratios within a round"
  )
  print(f"{'':<18}{'trained':>11}{'x time':>8}{'temporaries MiB':>17}{'model MiB':>11}")
  for name, (_, temp, held, size) in made.items():
    print(
      f"{name:<18}{size:>11,}{ratios[name]:>8.2f}{temp / 2**20:>17.0f}"
      f"{held / 2**20:>11.0f}"
    )


if __name__ == "__main__":
  main()
