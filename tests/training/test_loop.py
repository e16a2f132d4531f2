"""The training loop, with a device that computes a step when somebody waits for it."""

import os
import signal
import types

import numpy as np
import pytest

from jaxpeft import config
from jaxpeft.training import log, loop, step


class Store:
  """Checkpoints that are only counted."""

  latest = None

  def close(self):
    pass


class Device:
  """Computes steps in order, and one only when a result of it is waited for."""

  def __init__(self):
    self.begun = self.computed = 0

  def step(self, state, frozen, batch):
    self.begun += 1
    number = Number(self, self.begun)
    return state._replace(step=number), dict(
      loss=number, tokens=number, bad_step=Number(self, self.begun, -1)
    )


class Number:
  """A result of a step: its number if no other value is given."""

  def __init__(self, device, step, value=None):
    self.device, self.step = device, step
    self.value = step if value is None else value

  def block_until_ready(self):
    self.device.computed = max(self.device.computed, self.step)
    return self

  def __float__(self):
    return float(self.block_until_ready().value)

  def __int__(self):
    return int(self.block_until_ready().value)

  def __array__(self, dtype=None, copy=None):
    return np.asarray(self.block_until_ready().value, dtype)


@pytest.fixture(autouse=True)
def _signals():
  """The loop answers signals itself; whoever did before does so again."""
  before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


def run(folder, steps, held=None, device=None, **options):
  """(state or None, steps that were saved, log lines) of a loop.

  Args:
    folder: of the log.
    steps: how many.
    held: state -> held-out loss.
    device: computes the steps.
    options: of `config.train`.
  """
  saved, device = [], device or Device()
  c = config.base()
  c.train.update(dict(steps=steps, log_every=1000, eval_every=0, save_every=0))
  c.train.update(options)
  state = step.TrainState({}, {}, np.int32(0), np.int32(-1))
  batch = dict(segment=np.ones((1, 1, 4), np.int32))
  logs = log.Log(folder, -1)
  train = loop.Loop(
    c, device.step, None, lambda _: batch, lambda _: 0.1, logs, Store(),
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
  computed = []

  class Signalled(Device):
    def step(self, *args):
      if self.begun == 7:
        computed.append(self.computed)
        os.kill(os.getpid(), number)
      return super().step(*args)

  state, saved, _ = run(tmp_path, 40, device=Signalled())
  assert state is None
  assert computed[0] <= saved[0] <= computed[0] + 2


def test_the_host_prepares_a_batch_while_a_step_is_in_flight(tmp_path, monkeypatch):
  device, prepared = Device(), []
  real = loop.sharding.place_batch

  def place(batch):
    prepared.append(device.computed)
    return real(batch)

  monkeypatch.setattr(loop.sharding, "place_batch", place)
  state, *_ = run(tmp_path, 6, device=device)
  assert int(state.step) == 6
  assert prepared == [0, 0, 1, 2, 3, 4]  # of 0, 1, 2, ... steps that were begun


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
