"""Time and memory of a training step of every method, relative to LoRA r=16, on CPU.

  python benchmarks/adapter_step.py [--rounds 5]

It uses the model of benchmarks/train_step.py in float32, with adapters on all seven
projections. All steps are compiled first. Then the methods take turns, one step each,
so that drifts in the machine's speed affect all of them alike. "temporaries" is the
compiled step's plan; "model" counts the weights and the frozen factors that are stored
besides or instead of them.
"""

import argparse
import os
import statistics

import jax
from ready import ready
from train_step import BATCH, LENGTH, SHAPE

import jaxpeft

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


def main():
  """Measures, and prints one table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  made = {name: ready(SHAPE, a, BATCH, LENGTH) for name, a in METHODS.items()}
  for own in made.values():
    own.step()
  seconds = {name: [] for name in made}
  for _ in range(args.rounds):
    for name, own in made.items():
      seconds[name].append(own.step())
  first = next(iter(made))
  # Ratios within a round, so that drifts in the machine's speed cancel.
  ratios = {
    name: statistics.median(a / b for a, b in zip(own, seconds[first], strict=True))
    for name, own in seconds.items()
  }
  print(
    f"{os.cpu_count()} cores, {args.rounds} rounds, medians of ratios within a round"
  )
  print(f"{'':<18}{'trained':>11}{'x time':>8}{'temporaries MiB':>17}{'model MiB':>11}")
  for name, own in made.items():
    temp = own.compiled.memory_analysis().temp_size_in_bytes
    held = sum(x.nbytes for x in jax.tree.leaves(own.params))
    size = jaxpeft.count(own.params).trainable
    print(
      f"{name:<18}{size:>11,}{ratios[name]:>8.2f}{temp / 2**20:>17.0f}"
      f"{held / 2**20:>11.0f}"
    )


if __name__ == "__main__":
  main()
