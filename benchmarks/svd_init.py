"""Exact, randomised and torch's low-rank SVD of LLaMA2-7B-shaped weights, in one run.

  python benchmarks/svd_init.py [--ranks 16 64 128] [--iterations 6] [--full]

What an initialisation of PiSSA or LoRA-XS costs. The weights are synthetic, with
singular values i^-0.7 + 0.01, which decay as slowly as trained ones do. "captured" is
the energy of the triplets found as a share of the best's; "subspace" how far the span
of u is from the exact one, ||(1 - Q Q') U|| / sqrt(rank). The seven projections have
three shapes; each is timed once per rank after a run that is not counted, all on the
CPU. The exact SVD of the larger shapes takes minutes: without --full it is measured on
4096 x 4096 only.
"""

import argparse
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxpeft import svd

# shape of ours [in, out] -> the projections that have it
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


def timed(call):
  """(seconds of the second call, its result)."""
  call()
  clock = time.perf_counter()
  out = call()
  return time.perf_counter() - clock, out


def quality(u, s, exact_u, exact_s):
  """(captured energy, subspace error)."""
  rank = len(s)
  best = float(np.square(exact_s[:rank]).sum())
  lost = exact_u[:, :rank] - u @ (u.T @ exact_u[:, :rank])
  return float(np.square(s).sum()) / best, float(np.linalg.norm(lost) / rank**0.5)


def main():
  """Measures and prints one table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64, 128])
  parser.add_argument("--iterations", type=int, default=6)
  parser.add_argument("--full", action="store_true")
  args = parser.parse_args()
  print(f"{os.cpu_count()} cores, {args.iterations} power iterations, float32")
  print(
    f"{'shape':<14}{'rank':>5}  {'method':<12}{'seconds':>9}{'x exact':>9}"
    f"{'captured':>10}{'subspace':>10}"
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
      captured, error = quality(np.asarray(u), np.asarray(s), exact_u, exact_s)
      print(
        f"{label:<14}{'all':>5}  {'exact':<12}{exact:>9.2f}{1:>9.1f}"
        f"{captured:>10.4%}{'':>10}   {names}",
        flush=True,
      )
    for rank in args.ranks:

      def randomised(rank=rank, w=ours):
        found = svd.randomised(jax.random.key(0), w, rank, args.iterations)
        return jax.block_until_ready(found)

      def lowrank(rank=rank, w=theirs):
        return torch.svd_lowrank(w, q=rank, niter=args.iterations)

      for method, call in (("randomised", randomised), ("torch", lowrank)):
        seconds, (u, s, _) = timed(call)
        captured, error = quality(np.asarray(u), np.asarray(s), exact_u, exact_s)
        times = f"{exact / seconds:.1f}" if exact else "-"
        print(
          f"{label:<14}{rank:>5}  {method:<12}{seconds:>9.2f}{times:>9}"
          f"{captured:>10.4%}{error:>10.4f}",
          flush=True,
        )


if __name__ == "__main__":
  main()
