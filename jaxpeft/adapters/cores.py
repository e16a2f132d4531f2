"""Decompositions of many weights at once, one on each core of a CPU.

OpenBLAS splits one decomposition over all cores, which wait for each other: 210 exact
SVDs of SmolLM2-135M take 20 s on two idle cores, and 8 s if each core decomposes
weights of its own. The results are the same bits.
"""

import collections
import importlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import threadpoolctl

_WORKSPACE = 2e9  # bytes of the temporaries of all threads together
_TIMES = 10  # temporaries of a decomposition, as a multiple of its weight
# What a context manager of JAX may have set for this thread alone.
_CONTEXT = (
  "jax_default_device",
  "jax_default_matmul_precision",
  "jax_disable_jit",
  "jax_enable_x64",
)


def in_order(f: Callable, count: int, size: int) -> Iterator:
  """f(0), ..., f(count - 1), each as soon as it and those before it are there.

  Args:
    f: computes one result. On a CPU several threads call it.
    count: number of results.
    size: bytes of the weight that f decomposes in float32.
  """
  threads = min(_cores(), count, int(_WORKSPACE // (_TIMES * size)))
  if threads < 2 or jax.default_backend() != "cpu":
    yield from map(f, range(count))
    return
  importlib.import_module("scipy.linalg.cython_lapack")  # JAX's, to be limited as well
  with (
    threadpoolctl.threadpool_limits(max(1, _cores() // threads), user_api="blas"),
    ThreadPoolExecutor(threads) as pool,
  ):
    if pool.submit(context).result() != context():
      yield from map(f, range(count))
      return
    futures = collections.deque(pool.submit(f, i) for i in range(count))
    try:
      while futures:
        yield futures.popleft().result()  # the result need not stay here
    finally:
      pool.shutdown(wait=True, cancel_futures=True)


def context() -> list:
  """What JAX was told for this thread alone, and another thread does not know."""
  return [getattr(jax.config, name, None) for name in _CONTEXT]


def _cores() -> int:
  """Cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
