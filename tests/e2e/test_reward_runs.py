"""A run that trains a reward model: killed, resumed, evaluated and exported."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

import jaxpeft

ROOT = pathlib.Path(__file__).parents[2]


def rows(count, seed):
  rng = np.random.default_rng(seed)
  for _ in range(count):
    a, b = rng.integers(1, 9, 2)
    yield dict(prompt=f"Add {a} and {b}.", chosen=f" {a + b}", rejected=f" {a + b + 1}")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("pairs")
  for seed, name in enumerate(("train", "test")):
    text = "".join(json.dumps(row) + "\n" for row in rows(60 - 40 * seed, seed))
    (folder / f"{name}.jsonl").write_text(text)
  return folder


def environment(data):
  return os.environ | dict(JAX_PLATFORMS="cpu", JAXPEFT_CACHE=str(data / "cache"))


def command(data, workdir, *before):
  sets = dict(
    objective=dict(name="reward", center=0.01),
    data=dict(train=data / "train.jsonl", eval=data / "test.jsonl", max_tokens=96),
    train=dict(steps=8, batch_size=4, accumulate=2, save_every=2, eval_every=4),
    eval=dict(task="preference"),
    log=dict(tracker="none"),
  )
  flags = [f"--config.{s}.{k}={x}" for s, some in sets.items() for k, x in some.items()]
  main = [sys.executable, *before, "train.py", "--config=configs/lora.py"]
  return [*main, f"--workdir={workdir}", *flags]


def run(data, args, status=0):
  done = subprocess.run(
    args, cwd=ROOT, env=environment(data), capture_output=True, text=True
  )
  assert done.returncode == status, done.stderr[-3000:]
  return done.stdout


def theta(workdir):
  return safetensors.numpy.load_file(workdir / "adapter" / "adapter.safetensors")


@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_was_not_and_is_evaluated_and_exported(data):
  whole, killed = data / "whole", data / "killed"
  said = run(data, command(data, whole))
  assert "held-out accuracy of the order" in said
  lines = [json.loads(x) for x in (whole / "metrics.jsonl").read_text().splitlines()]
  assert 0 <= lines[-1]["eval_accuracy"] <= 1
  mishap = json.dumps([dict(signal=9, step=5)])
  run(data, command(data, killed, "tests/support/mishap.py", mishap), -9)
  assert (killed / "checkpoints" / "2").exists()
  assert not (killed / "adapter").exists(), "it was killed too late"
  run(data, command(data, killed))
  want, got = theta(whole), theta(killed)
  assert want.keys() == got.keys()
  assert want["score/theta/w"].any()
  for name in want:
    np.testing.assert_array_equal(got[name], want[name])
  said = run(data, [sys.executable, "eval.py", f"--ckpt={whole}"])
  assert "accuracy" in said
  for kind in ("hf", "peft"):
    export = [sys.executable, "-m", "jaxpeft", "export", f"--ckpt={whole}"]
    said = run(data, [*export, f"--format={kind}", f"--out={data / kind}"])
    assert "rewards differ by at most" in said
  texts = [(row["prompt"], row["chosen"]) for row in rows(5, 3)]
  ours = jaxpeft.load_run(whole).reward(texts)
  back = jaxpeft.load(str(data / "hf"), dtype="float32").reward(texts)
  np.testing.assert_allclose(back, ours, atol=1e-4)
