"""Speed of matrix products in XLA and in torch, on the CPU; it bounds the other tables.

  python benchmarks/products.py [--rounds 3]

The shapes are those of a training step (1,024 rows, benchmarks/train_step.py) and of
decoding (8 rows, benchmarks/generate.py), in float32, in one loop over eight weights.
Each side runs in its own process, and the two take turns; the figures are medians.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

SHAPES = [
  (m, k, n) for m in (1024, 8) for k, n in ((512, 512), (512, 1408), (1408, 512))
]
WEIGHTS = 8


def seconds(call, repeats: int = 15) -> float:
  """Median seconds per product of a call that computes all eight."""
  for _ in range(3):
    call()
  taken = []
  for _ in range(repeats):
    clock = time.perf_counter()
    call()
    taken.append(time.perf_counter() - clock)
  return statistics.median(taken) / WEIGHTS


def xla(m, k, n) -> float:
  """Seconds of one product in XLA."""
  import jax
  import jax.numpy as jnp

  @jax.jit
  def products(x, ws):
    return jax.lax.map(lambda w: x @ w, ws)

  x, ws = jnp.ones((m, k)), jnp.ones((WEIGHTS, k, n))
  return seconds(lambda: jax.block_until_ready(products(x, ws)))


def torch(m, k, n) -> float:
  """Seconds of one product in torch."""
  import torch

  x, ws = torch.ones(m, k), torch.ones(WEIGHTS, n, k)
  return seconds(lambda: [torch.nn.functional.linear(x, w) for w in ws])


def main():
  """Measures, and prints one table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--only", help=argparse.SUPPRESS)
  args = parser.parse_args()
  sides = dict(xla=xla, torch=torch)
  if args.only:
    print(json.dumps([sides[args.only](*shape) for shape in SHAPES]))
    return
  got = {name: [] for name in sides}
  for _ in range(args.rounds):
    for name in sides:
      command = [sys.executable, __file__, "--only", name]
      out = subprocess.run(command, check=True, capture_output=True, text=True)
      got[name].append(json.loads(out.stdout.splitlines()[-1]))
  print(f"{'rows x in x out':<18}{'XLA GFLOP/s':>12}{'torch GFLOP/s':>15}{'ratio':>7}")
  for i, (m, k, n) in enumerate(SHAPES):
    ours, theirs = (
      2e-9 * m * k * n / statistics.median(run[i] for run in got[name])
      for name in sides
    )
    shape = f"{m} x {k} x {n}"
    print(f"{shape:<18}{ours:>12.0f}{theirs:>15.0f}{ours / theirs:>7.2f}")


if __name__ == "__main__":
  main()
