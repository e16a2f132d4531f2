"""Time of exact, randomized and torch's low-rank SVD, for weights of LLaMA2-7B's shape.

  python benchmarks/svd_init.py [--ranks 16 64 128] [--energy 0.999] [--full]

This is the cost of initializing PiSSA or LoRA-XS. The weights are synthetic, with
singular values i^-0.7 + 0.01, which decay as slowly as those of trained weights.
"captured" is the energy of the singular triplets found, as a share of that of the exact
ones. "subspace" is the distance between the spans of the found u, Q, and the exact U:
||(1 - Q Q') U|| / sqrt(rank). Each method uses the fewest power iterations that capture
--energy. The seven projections have three shapes. Our SVD and torch's take turns on
the CPU; the times are medians of five. The exact SVD of the larger shapes takes long,
so without --full it is measured for 4096 x 4096 only.
"""

import argparse
import functools
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxpeft.adapters import svd

# shape [in, out] -> the projections that have it
SHAPES = {(4096, 4096): "q k v o", (4096, 11008): "gate up", (11008, 4096): "down"}


def synthetic(shape, seed=0):
  """(w, u, s) with known singular vectors: products of Householder reflections."""
  rng = np.random.default_rng(seed)
  k = min(shape)
  s = (np.arange(1, k + 1) ** -0.7 + 0.01).astype(np.float32)
  w = np.zeros(shape, np.float32)
  np.fill_diagonal(w, s)
  u = np.eye(shape[0], k, dtype=np.float32)
  for _ in range(4):
    left, right = (rng.normal(size=(n, 1)).astype(np.float32) for n in shape)
    left, right = left / np.linalg.norm(left), right / np.linalg.norm(right)
    w -= 2 * left @ (left.T @ w)
    u -= 2 * left @ (left.T @ u)
    w -= 2 * (w @ right) @ right.T
  return w, u, s


def seconds(calls, rounds=5):
  """Median seconds of each call; the calls take turns."""
  found = [[] for _ in calls]
  for _ in range(rounds):
    for times, call in zip(found, calls, strict=True):
      clock = time.perf_counter()
      call()
      times.append(time.perf_counter() - clock)
  return [statistics.median(times) for times in found]


def fewest(call, energy, exact_u, exact_s):
  """(fewest iterations that capture `energy`, captured energy, subspace error)."""
  for iterations in range(1, 30):
    u, s, _ = call(iterations)
    found = quality(np.asarray(u), np.asarray(s), exact_u, exact_s)
    if found[0] >= energy:
      break
  return iterations, *found


def quality(u, s, exact_u, exact_s):
  """(captured energy, subspace error) of the triplets found, against the exact ones."""
  rank = len(s)
  best = float(np.square(exact_s[:rank]).sum())
  lost = exact_u[:, :rank] - u @ (u.T @ exact_u[:, :rank])
  return float(np.square(s).sum()) / best, float(np.linalg.norm(lost) / rank**0.5)


def main():
  """Measures, and prints one table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64, 128])
  parser.add_argument("--energy", type=float, default=0.999)
  parser.add_argument("--full", action="store_true")
  args = parser.parse_args()
  print(f"{os.cpu_count()} cores, at least {args.energy:.1%} captured, float32")
  print(
    f"{'shape':<14}{'rank':>5}  {'method':<12}{'iterations':>10}{'seconds':>9}"
    f"{'x exact':>9}{'x torch':>9}{'captured':>10}{'subspace':>10}"
  )
  for shape, names in SHAPES.items():
    w, exact_u, exact_s = synthetic(shape)
    ours, theirs = jnp.asarray(w), torch.tensor(w)
    label = f"{shape[0]}x{shape[1]}"
    exact = None
    if args.full or shape == (4096, 4096):
      clock = time.perf_counter()
      u, s, _ = jax.block_until_ready(svd.exact(ours))
      exact = time.perf_counter() - clock
      captured, _ = quality(np.asarray(u), np.asarray(s), exact_u, exact_s)
      print(
        f"{label:<14}{'all':>5}  {'exact':<12}{'':>10}{exact:>9.2f}{1:>9.1f}{'':>9}"
        f"{captured:>10.4%}{'':>10}   {names}",
        flush=True,
      )
    for rank in args.ranks:

      def randomized(iterations, rank=rank, w=ours):
        found = svd.randomized(jax.random.key(0), w, rank, iterations)
        return jax.block_until_ready(found)

      def lowrank(iterations, rank=rank, w=theirs):
        torch.manual_seed(0)
        return torch.svd_lowrank(w, q=rank, niter=iterations)

      methods = dict(randomized=randomized, torch=lowrank)
      found = {
        name: fewest(call, args.energy, exact_u, exact_s)
        for name, call in methods.items()
      }
      calls = [functools.partial(f, found[name][0]) for name, f in methods.items()]
      times = dict(zip(methods, seconds(calls), strict=True))
      for name, (iterations, captured, error) in found.items():
        faster = f"{exact / times[name]:.1f}" if exact else "-"
        print(
          f"{label:<14}{rank:>5}  {name:<12}{iterations:>10}{times[name]:>9.2f}"
          f"{faster:>9}{times['torch'] / times[name]:>9.2f}{captured:>10.4%}"
          f"{error:>10.4f}",
          flush=True,
        )


if __name__ == "__main__":
  main()
