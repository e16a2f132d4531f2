"""The second start of a run compiles nothing, and computes the same bits."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
OPTIONS = """train.steps=2 train.log_every=1 train.batch_size=2 data.max_tokens=64
data.limit=8 eval.loss_limit=2 eval.task= log.tracker=none""".split()
# train.py, and then a line with the number of programs that it compiled.
COUNT = """
import atexit, json, runpy, sys
import jax
found = dict(hits=0, misses=0)
def listen(name, **_):
  if name.startswith("/jax/compilation_cache/cache_"):
    found[name.rpartition("_")[2]] += 1
jax.monitoring.register_event_listener(listen)
atexit.register(lambda: print(json.dumps(found)))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(tmp_path, name) -> dict:
  """What a run counts, says and leaves."""
  workdir = tmp_path / name
  env = os.environ | dict(
    JAXPEFT_CACHE=str(tmp_path / "cache"),
    JAXPEFT_COMPILED_CACHE_GB="1",
    JAX_PLATFORMS="cpu",
    JAX_DISABLE_MOST_OPTIMIZATIONS="1",
    PYTHONPATH=f"{ROOT}:{ROOT / 'kernels'}",
  )
  done = subprocess.run(
    [
      sys.executable, "-c", COUNT, "train.py", "--config=configs/svft_banded.py",
      f"--workdir={workdir}", *(f"--config.{option}" for option in OPTIONS),
    ],
    env=env, cwd=ROOT, capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-3000:]
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  final = json.loads(lines[-1])
  return dict(
    programs=json.loads(done.stdout.splitlines()[-1]),
    theta=(workdir / "adapter" / "adapter.safetensors").read_bytes(),
    planned=final["peak_memory_bytes"],
    losses=[json.loads(x).get("loss") for x in lines] + [final["eval_loss"]],
    said=done.stdout + done.stderr,
  )


def test_a_second_start_compiles_nothing_and_ends_the_same(tmp_path):
  first, second = start(tmp_path, "first"), start(tmp_path, "second")
  assert first["programs"]["misses"] > 20
  assert second["programs"]["misses"] == 0
  # All that were compiled and perhaps more: some were compiled by two threads at once.
  assert second["programs"]["hits"] > 20
  for key in ("theta", "planned", "losses"):
    assert first[key] == second[key], key
  assert "MiB planned for a step, " in first["said"]
  assert "MiB measured for the process" in first["said"]
