"""The training loop with a step that sleeps on the device, as a slow model's would."""

import os
import signal
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpeft import config
from jaxpeft.training import log, loop, step


class Store:
  """Checkpoints that are only counted."""

  latest = None

  def close(self):
    pass


def run(folder, steps, held=None, ready=None, **options):
  """(state or None, steps that were saved, log lines) of a loop.

  Args:
    folder: of the log.
    steps: how many; each keeps the device busy for some 10 ms.
    held: state -> held-out loss.
    ready: a list to which results of steps are added, to ask which are computed.
    options: of `config.train`.
  """
  saved, ready = [], [] if ready is None else ready

  @jax.jit
  def busy(state, w):
    w = jax.lax.fori_loop(0, 10, lambda _, w: jnp.tanh(w @ w), w)
    one = jnp.minimum(1.0, jnp.abs(w).max() + 1.0)
    metrics = dict(loss=one, tokens=one, bad_step=jnp.int32(-1))
    return state._replace(step=state.step + one.astype(jnp.int32)), metrics

  def step_fn(state, frozen, batch):
    state, metrics = busy(state, frozen)
    ready.append(metrics["loss"])
    return state, metrics

  c = config.base()
  c.train.update(dict(steps=steps, log_every=1000, eval_every=0, save_every=0))
  c.train.update(options)
  state = step.TrainState({}, {}, jnp.int32(0), jnp.int32(-1))
  batch = dict(segment=np.ones((1, 1, 4), np.int32))
  logs = log.Log(folder, -1)
  train = loop.Loop(
    c, step_fn, jnp.eye(400), lambda _: batch, lambda _: 0.1, logs, Store(),
    lambda state, best: saved.append(int(state.step)), held, lambda *_: None,
  )  # fmt: skip
  try:
    return train.run(state, loop.Best()), saved, logs
  except loop.Stopped:
    return None, saved, logs
  finally:
    logs.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_answered_within_two_steps(tmp_path, number):
  """log_every is 1000: nothing but the bound on dispatch makes the loop wait."""
  ready, computed = [], []

  def interrupt():
    while sum(x.is_ready() for x in ready[:]) < 5:
      time.sleep(0.001)
    computed.append(sum(x.is_ready() for x in ready[:]))
    os.kill(os.getpid(), number)

  thread = threading.Thread(target=interrupt, daemon=True)
  thread.start()
  state, saved, _ = run(tmp_path, 40, ready=ready)
  thread.join()
  assert state is None
  assert computed[0] <= saved[0] <= computed[0] + 2


def test_the_host_prepares_a_batch_while_a_step_is_in_flight(tmp_path, monkeypatch):
  ready, prepared = [], []
  real = loop.sharding.place_batch

  def place(batch):
    prepared.append(sum(x.is_ready() for x in ready))
    return real(batch)

  monkeypatch.setattr(loop.sharding, "place_batch", place)
  state, *_ = run(tmp_path, 6, ready=ready)
  assert int(state.step) == 6
  assert all(n <= i for i, n in enumerate(prepared[1:])), prepared


def test_the_held_out_loss_before_the_first_step(tmp_path):
  held = types.SimpleNamespace(seen=[])

  def loss(state):
    held.seen.append(int(state.step))
    return dict(loss=2.0 - len(held.seen), accuracy=0.5)

  *_, logs = run(tmp_path, 4, loss, eval_every=2)
  assert held.seen == [0, 2, 4]
  values = [(x["step"], x["eval_loss"]) for x in logs.lines if "eval_loss" in x]
  assert values == [(0, 1.0), (2, 0.0), (4, -1.0)]
  assert logs.at(2, "eval_accuracy") == 0.5
  *_, logs = run(tmp_path, 4, loss, eval_first=False)
  assert logs.at(0, "eval_loss") is None
