"""What an optimizer's numbers and a run's memory are, by definitions of their own."""

import itertools
import json
import os
import pathlib
import runpy
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import flags

import jaxpeft
from jaxpeft import config, experiment  # noqa: F401  (its libraries declare flags)
from jaxpeft.checkpoints import run_state  # noqa: F401
from jaxpeft.evaluation import evaluate
from jaxpeft.objectives import Supervised
from jaxpeft.parallel import sharding
from jaxpeft.training import optimizer
from jaxpeft.training import step as training

ROOT = pathlib.Path(__file__).parents[2]


def options(**changes):
  """config.optim with changes."""
  c = config.base().optim
  with c.unlocked():
    c.update(changes)
  return c


def follow(tx, x, grads):
  """The parameters after one update with each gradient."""
  state, out = tx.init(x), []
  for g in grads:
    updates, state = tx.update(g, state, x)
    x = optax.apply_updates(x, updates)
    out.append(x)
  return out


def test_adamw_is_the_papers():
  """Loshchilov and Hutter 2019, algorithm 2, with Adam's 0.9, 0.999 and 1e-8."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=5)
  grads = [rng.normal(size=5) * 10.0**i for i in (0, 1, -2, -1, 0, 1)]
  changes = dict(schedule="constant", warmup=0.0, clip_norm=0.0)
  tx, _ = optimizer.make(10, **options(lr=0.03, weight_decay=0.2, **changes))
  got = follow(tx, jnp.asarray(x, jnp.float32), grads)
  m = v = np.zeros(5)
  for t, (g, found) in enumerate(zip(grads, got, strict=True), 1):
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    x = x - 0.03 * (step + 0.2 * x)
    np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-5)


def test_options_of_an_optimizer_reach_it():
  g = [np.ones(1, np.float32), -np.ones(1, np.float32)]
  changes = dict(schedule="constant", warmup=0.0, clip_norm=0.0, lr=1.0)
  tx, _ = optimizer.make(
    10, **options(name="sgd", options=dict(momentum=0.5), **changes)
  )
  first, second = follow(tx, jnp.zeros(1), g)
  assert float(first[0]) == -1
  assert float(second[0]) == pytest.approx(-1 + 1 - 0.5)


def test_the_rate_of_each_step_is_the_schedules():
  tx, rate = optimizer.make(8, **options(name="sgd", lr=1.0, warmup=0.25, clip_norm=0))
  moved = follow(tx, jnp.zeros(1), [np.ones(1, np.float32)] * 8)
  steps = -np.diff([0.0, *(float(x[0]) for x in moved)])
  # Two steps of warm-up, then half a cosine over six.
  want = [0.5, 1.0, *(0.5 + 0.5 * np.cos(np.pi * np.arange(6) / 6))]
  np.testing.assert_allclose(steps, want, atol=1e-6)
  np.testing.assert_allclose([float(rate(i)) for i in range(8)], want, atol=1e-6)


def test_a_linear_rate_ends_at_its_share_of_the_peak():
  changes = dict(name="sgd", lr=0.5, warmup=0.0, schedule="linear", final_lr=0.2)
  _, rate = optimizer.make(10, **options(**changes))
  want = 0.5 - 0.4 * np.arange(11) / 10
  np.testing.assert_allclose([float(rate(i)) for i in range(11)], want, atol=1e-6)


def test_clipping_scales_the_whole_gradient():
  grads = dict(a=np.float32([3.0]), b=np.float32([4.0]))
  changes = dict(name="sgd", lr=1.0, schedule="constant", warmup=0.0)
  tx, _ = optimizer.make(10, **options(clip_norm=1.0, **changes))
  (moved,) = follow(tx, jax.tree.map(jnp.zeros_like, grads), [grads])
  assert float(moved["a"][0]) == pytest.approx(-0.6)
  assert float(moved["b"][0]) == pytest.approx(-0.8)
  tx, _ = optimizer.make(10, **options(clip_norm=10.0, **changes))
  (moved,) = follow(tx, jax.tree.map(jnp.zeros_like, grads), [grads])
  assert float(moved["a"][0]) == -3


def test_a_steps_noise_has_the_size_of_neftunes_paper(monkeypatch):
  """What reaches the embeddings: alpha / sqrt(T D) times a uniform draw of (-1, 1)."""
  model = jaxpeft.load("embedded", dtype="float32")
  params = jaxpeft.adapt(model.params, {".*/q": jaxpeft.LoRA()}, jax.random.key(0))
  theta, frozen = jaxpeft.partition(params, jaxpeft.trainable_mask(params))
  seen = []

  def loss(net, params, batch, constant=None):
    jax.debug.callback(lambda x: seen.append(np.array(x)), batch["noise"])
    theta, _ = jaxpeft.partition(params, jaxpeft.trainable_mask(params))
    total = sum(x.sum() for x in jax.tree.leaves(theta))
    return training_loss(total, jnp.float32(1), {})

  from jaxpeft.objectives import supervised
  from jaxpeft.objectives.base import Loss as training_loss

  monkeypatch.setattr(supervised, "loss", loss)
  tx = optax.sgd(0.0)
  step = training.make_step(model.transformer, tx, Supervised(neftune=5.0))
  rows, length, width = 3, 25, model.config.width
  batch = dict(tokens=np.zeros((1, rows, length), np.int32))
  state = training.init_state(theta, tx)
  for _ in range(2):
    state, _ = step(state, frozen, batch)
  jax.effects_barrier()
  size = 5.0 / np.sqrt(length * width)
  for noise in seen:
    assert noise.shape == (rows, length, width)
    assert 0.99 * size < np.abs(noise).max() <= size
    assert np.abs(noise.mean()) < 0.05 * size
    assert noise.std() == pytest.approx(size / np.sqrt(3), rel=0.05)
  assert len(seen) == 2
  assert not np.array_equal(*seen)


def run_train(monkeypatch, *words):
  """Runs train.py in this process; returns its exit status."""
  known = set(flags.FLAGS)
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(sys, "argv", ["train.py", *words])
  monkeypatch.setattr(sharding, "mesh", lambda **_: None)  # it would stay in force
  try:
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
  except SystemExit as e:
    return e.code
  finally:
    for flag in set(flags.FLAGS) - known:
      delattr(flags.FLAGS, flag)
  return 0


def test_the_best_before_a_stop_is_still_the_best_after_it(tmp_path, monkeypatch):
  """Also the patience goes on: a held-out loss before the stop counts."""
  script, asked = itertools.chain([1.0, 0.5, 0.9], itertools.repeat(0.8)), []

  def loss(*_):
    value = next(script)
    asked.append(value)
    if value == 0.9:  # at step 4
      os.kill(os.getpid(), signal.SIGTERM)
    return dict(loss=value)

  monkeypatch.setattr(evaluate, "means", loss)
  words = [
    f"--config={ROOT}/configs/lora.py", f"--workdir={tmp_path}/run",
    "--config.adapt.main.match=.*/attn/q", "--config.eval.task=",
    "--config.train.steps=40", "--config.train.eval_every=2",
    "--config.train.batch_size=1", "--config.data.max_tokens=96",
    "--config.data.limit=20", "--config.train.patience=3",
  ]  # fmt: skip
  assert run_train(monkeypatch, *words) == 128 + signal.SIGTERM
  assert run_train(monkeypatch, *words) == 0
  lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
  final = json.loads(lines[-1])
  assert asked == [1.0, 0.5, 0.9, 0.8, 0.8], "three without an improvement"
  assert final["adapter_step"] == 2
  assert final["eval_loss"] == 0.5
  meta = json.loads((tmp_path / "run/adapter/adapter.json").read_text())
  assert meta["step"] == 2
