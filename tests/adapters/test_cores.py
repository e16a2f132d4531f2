"""Decompositions on several cores: order, errors, threads, and the same bits."""

import os
import subprocess
import sys
import threading

import chex
import jax
import jax.numpy as jnp
import pytest
import threadpoolctl

import jaxpeft
from jaxpeft.adapters import cores


@pytest.fixture
def three(monkeypatch):
  monkeypatch.setattr(cores, "_cores", lambda: 3)


def test_results_come_in_order_from_several_threads_at_once(three):
  together = threading.Barrier(3, timeout=300)  # passes only if three are inside

  def f(i):
    together.wait()
    return i, threading.current_thread().name

  found = list(cores.in_order(f, 9, 100))
  assert [i for i, _ in found] == list(range(9))
  assert len({name for _, name in found}) == 3


def test_memory_decides_how_many_run_at_once(three):
  here = lambda i: threading.current_thread() is threading.main_thread()  # noqa: E731
  for size, alone in ((10**9, True), (10**7, False)):
    assert list(cores.in_order(here, 3, size)) == [alone] * 3


def test_an_error_is_raised_where_it_belongs_and_ends_the_others(three, monkeypatch):
  begun, cancelled = [], threading.Event()

  class Pool(cores.ThreadPoolExecutor):
    def shutdown(self, wait=True, *, cancel_futures=False):
      super().shutdown(wait=False, cancel_futures=cancel_futures)
      cancelled.set()  # only now do the calls that run already go on
      super().shutdown(wait)

  def f(i):
    begun.append(i)
    if i == 1:
      raise ValueError("bad layer")
    assert i == 0 or cancelled.wait(300)
    return i

  monkeypatch.setattr(cores, "ThreadPoolExecutor", Pool)
  found = cores.in_order(f, 500, 100)
  assert next(found) == 0
  with pytest.raises(ValueError, match="bad layer"):
    list(found)
  assert len(begun) <= 2 + 3  # one in each thread


def test_what_jax_was_told_for_this_thread_holds(three):
  f = lambda _: jax.config.jax_default_matmul_precision  # noqa: E731
  with jax.default_matmul_precision("highest"):
    assert list(cores.in_order(f, 3, 100)) == ["highest"] * 3


def test_jaxs_lapack_runs_on_one_thread_from_the_first_call_on():
  code = """
import jax, jax.numpy as jnp, threadpoolctl
from jaxpeft.adapters import cores
cores._cores = lambda: 2
def f(i):
  jax.block_until_ready(jnp.linalg.svd(jnp.eye(8) * i))
  return [x["num_threads"] for x in threadpoolctl.threadpool_info()
          if "scipy.libs" in x["filepath"]]
assert list(cores.in_order(f, 4, 100)) == [[1]] * 4
"""
  env = os.environ | dict(OPENBLAS_NUM_THREADS="2", JAX_PLATFORMS="cpu")
  subprocess.run([sys.executable, "-c", code], check=True, env=env)


@pytest.mark.parametrize("name", ["SVFT", "PiSSA", "OLoRA"])
def test_the_bits_are_those_of_one_thread(three, name, monkeypatch, tmp_path):
  monkeypatch.setenv("JAXPEFT_SVD_CACHE_GB", "0")
  key = jax.random.key(0)
  stack = jax.random.normal(key, (6, 40, 64), jnp.float32)
  params = dict(layers_0=dict(attn=dict(q=stack)))
  method = dict(SVFT=jaxpeft.SVFT("banded"), OLoRA=jaxpeft.OLoRA(4))
  rules = {".*": method.get(name, jaxpeft.PiSSA(4, iterations=3))}
  many = jaxpeft.adapt(params, rules, key)
  monkeypatch.setattr(cores, "_cores", lambda: 1)
  chex.assert_trees_all_equal(many, jaxpeft.adapt(params, rules, key))


def test_limits_on_threads_end_with_the_work(three):
  before = threadpoolctl.threadpool_info()
  list(cores.in_order(lambda i: i, 4, 100))
  assert threadpoolctl.threadpool_info() == before
