"""train.py and eval.py in several processes: same results, also killed and resumed."""

import json
import os
import pathlib
import signal
import subprocess
import sys

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


def command(workdir, mishaps=()):
  """train.py; a start that has one ends by a mishap of tests/support/mishap.py."""
  before = ["tests/support/mishap.py", json.dumps(mishaps)] if mishaps else []
  main = [sys.executable, *before, "train.py", "--config=configs/lora.py"]
  return [*main, f"--workdir={workdir}", *SHORT]


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


def run(tmp_path, args, devices=1, status=0):
  done = subprocess.run(
    args, cwd=ROOT, env=environment(tmp_path, devices), capture_output=True, text=True
  )
  assert done.returncode == status, done.stderr[-3000:]
  return done.stderr


def losses(workdir):
  lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [x["loss"] for x in lines if "loss" in x], lines[-1]["eval_loss"]


def theta(workdir):
  return safetensors.numpy.load_file(workdir / "adapter" / "adapter.safetensors")


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
    stop = dict(signal=signal.SIGTERM, step=4, process=1, pause=3)
    half = launched(2, 2, "--", *command(tmp_path / name, [stop]))
    run(tmp_path, half, status=128 + signal.SIGTERM)
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
  kills = [dict(signal=9, step=s, process=s % 2) for s in (1, 6, 9)]
  said = run(
    tmp_path,
    launched(2, 2, "--max-restarts=3", "--", *command(tmp_path / "killed", kills)),
  )
  assert "restart 3 of 3" in said
  want, got = theta(tmp_path / "calm"), theta(tmp_path / "killed")
  for path, leaf in want.items():
    np.testing.assert_array_equal(got[path], leaf)
  assert losses(tmp_path / "calm") == losses(tmp_path / "killed")
