"""train.py and eval.py in several processes: same results, also killed and resumed."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.slow
SHORT = [
  "--config.model.quantize=nf4",
  "--config.train.steps=12",
  "--config.train.batch_size=8",
  "--config.train.eval_every=6",
  "--config.train.save_every=2",
  "--config.train.log_every=1",
  "--config.data.max_tokens=128",
  "--config.eval.task=",
  "--config.eval.loss_limit=16",
]


def command(workdir, *options):
  main = [sys.executable, "train.py", "--config=configs/lora.py"]
  return [*main, f"--workdir={workdir}", *SHORT, *options]


def launched(count, devices, *rest):
  launch = [sys.executable, "-m", "jaxpeft", "launch", "-n", str(count)]
  return [*launch, f"--devices-per-process={devices}", *rest]


def environment(tmp_path, devices=1):
  return os.environ | dict(
    JAX_NUM_CPU_DEVICES=str(devices),
    JAX_PLATFORMS="cpu",
    JAXPEFT_CACHE=str(tmp_path.parent / "cache"),
    TF_CPP_MIN_LOG_LEVEL="3",
  )


def run(tmp_path, args, devices=1):
  done = subprocess.run(
    args, cwd=ROOT, env=environment(tmp_path, devices), capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout


def losses(workdir):
  lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [x["loss"] for x in lines if "loss" in x], lines[-1]["eval_loss"]


def theta(workdir):
  return safetensors.numpy.load_file(workdir / "adapter" / "adapter.safetensors")


def start_and_kill(tmp_path, workdir, after):
  """Trains in two processes, and kills one after each number of steps in `after`."""
  args = launched(2, 2, "--max-restarts=3", "--", *command(workdir))
  group = subprocess.Popen(
    args,
    cwd=ROOT,
    env=environment(tmp_path),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  killed, victims = [], iter(after)
  target = next(victims)
  while group.poll() is None:
    log = workdir / "metrics.jsonl"
    steps = log.read_text().count('"loss"') if log.exists() else 0
    if target is not None and steps >= target:
      out = subprocess.run(
        ["pgrep", "-P", str(group.pid)], capture_output=True, text=True
      )
      members = sorted(map(int, out.stdout.split()))
      if len(members) == 2:
        victim = members[len(killed) % 2]
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)
        target = next(victims, None)
    time.sleep(0.05)
  assert group.returncode == 0
  assert len(killed) == len(after), "the run was over before"


def test_two_processes_train_evaluate_and_resume_as_one_and_as_four(tmp_path):
  run(tmp_path, command(tmp_path / "one"))
  run(tmp_path, launched(2, 2, "--", *command(tmp_path / "two")))
  for a, b in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5)
  # Half of it in two processes; the rest in another number of them.
  for name, args in (
    ("as-one", command(tmp_path / "as-one")),
    ("as-four", launched(4, 1, "--", *command(tmp_path / "as-four"))),
  ):
    args_half = launched(2, 2, "--", *command(tmp_path / name))
    group = subprocess.Popen(args_half, cwd=ROOT, env=environment(tmp_path),
                             stderr=subprocess.DEVNULL)  # fmt: skip
    log = tmp_path / name / "metrics.jsonl"
    while group.poll() is None and not (
      log.exists() and log.read_text().count("loss") > 4
    ):
      time.sleep(0.05)
    group.send_signal(signal.SIGTERM)
    assert group.wait() == 128 + signal.SIGTERM
    assert not (tmp_path / name / "adapter").exists()
    run(tmp_path, args)
    for a, b in zip(losses(tmp_path / "one"), losses(tmp_path / name), strict=True):
      np.testing.assert_allclose(a, b, rtol=2e-5)
  out = tmp_path / "eval.json"
  scored = [sys.executable, "eval.py", f"--ckpt={tmp_path / 'two'}", f"--out={out}"]
  run(tmp_path, launched(2, 2, "--", *scored, "--limit=16"))
  found = json.loads(out.read_text())["loss"]
  assert found == pytest.approx(losses(tmp_path / "two")[1], rel=1e-5)


def test_killed_three_times_it_ends_as_if_it_had_not_been(tmp_path):
  run(tmp_path, launched(2, 2, "--", *command(tmp_path / "calm")))
  steps = sorted(np.random.default_rng().choice(np.arange(1, 11), 3, replace=False))
  print("killed after steps", steps)
  start_and_kill(tmp_path, tmp_path / "killed", steps)
  want, got = theta(tmp_path / "calm"), theta(tmp_path / "killed")
  for path, leaf in want.items():
    np.testing.assert_array_equal(got[path], leaf)
  assert losses(tmp_path / "calm") == losses(tmp_path / "killed")
