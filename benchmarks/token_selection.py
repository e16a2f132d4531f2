"""Time, FLOPs and memory of a LoRA step with token selection, on the CPU.

  python benchmarks/token_selection.py [--rounds 5]

The model has width 512 and 8 layers, the batch is 4 x 512 tokens in float32, and LoRA
r=16 is on all seven projections. All steps are compiled first, and then take turns.
FLOPs are those of the matrix products in the traced step; memory is the compiled step's
temporaries. Ratios are to training on all tokens with the same remat.
"""

import argparse
import math
import os
import statistics

import jax
import jax.extend.core
from ready import ready
from train_step import SHAPE

import jaxpeft

BATCH, LENGTH = 4, 512
CASES = [(remat, f) for remat in ("none", "layer") for f in (1.0, 0.3, 0.1)]


def flops(jaxpr) -> int:
  """FLOPs of all matrix products; those in scans count once per iteration."""
  total = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "dot_general":
      (contracted, _), _ = eqn.params["dimension_numbers"]
      size = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
      total += 2 * size * math.prod(eqn.outvars[0].aval.shape)
    times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
    for inner in jax.extend.core.jaxprs_in_params(eqn.params):
      total += times * flops(inner)
  return total


def main():
  """Measures, and prints one table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  lora = jaxpeft.LoRA(rank=16, alpha=16.0)
  made = {case: ready(SHAPE, lora, BATCH, LENGTH, *case) for case in CASES}
  counts = {case: flops(own.jaxpr) for case, own in made.items()}
  for own in made.values():
    own.step()
  seconds = {case: [] for case in made}
  for _ in range(args.rounds):
    for case, own in made.items():
      seconds[case].append(own.step())

  def ratio(case, to):
    pairs = zip(seconds[case], seconds[to], strict=True)
    return statistics.median(a / b for a, b in pairs)

  print(f"{os.cpu_count()} cores, {args.rounds} rounds, medians of ratios in a round")
  print("remat  tokens  GFLOP  x FLOPs  x time  x time of remat layer  temporaries MiB")
  for case, own in made.items():
    whole, count = (case[0], 1.0), counts[case]
    memory = own.compiled.memory_analysis().temp_size_in_bytes
    print(
      f"{case[0]:5}{case[1]:>8.0%}{count / 1e9:>7.0f}{count / counts[whole]:>9.2f}"
      f"{ratio(case, whole):>8.2f}{ratio(case, ('layer', 1.0)):>23.2f}"
      f"{memory / 2**20:>17.0f}"
    )


if __name__ == "__main__":
  main()
