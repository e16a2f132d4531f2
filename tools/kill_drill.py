"""Kills a run 24 times and compares its end with that of a run that nobody disturbed.

  python tools/kill_drill.py [--kills=24] [--config=configs/svft_banded.py] [--seed=0]

SIGKILL comes at random moments: one third of them before the first step of a start,
one third some time after a step, and one third as soon as a checkpoint is being
written. Adapter, held-out losses and log lines must be the same bit for bit, and
nothing may be left behind.
"""

import argparse
import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
_STEPS = 90
_OPTIONS = f"""train.steps={_STEPS} train.log_every=1 train.save_every=3
train.eval_every=10 train.batch_size=2 data.limit=60 data.max_tokens=96
eval.task= eval.loss_limit=4""".split()
# What depends on the clock, and on what a process compiled itself or found on disk.
_OF_A_PROCESS = {"tokens_per_s", "wall_s", "time", "elapsed_s", "process_memory_bytes"}
_OF_A_PROCESS |= {"peak_memory_bytes", "peak_memory_is"}


def start(config: str, workdir: pathlib.Path) -> subprocess.Popen:
  """train.py in the background."""
  words = [f"--config.{option}" for option in _OPTIONS]
  command = [sys.executable, "train.py", f"--config={config}", f"--workdir={workdir}"]
  return subprocess.Popen(
    [*command, *words],
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(config: str, workdir: pathlib.Path):
  """Runs to the end, which must succeed."""
  process = start(config, workdir)
  stderr = process.communicate()[1]
  if process.returncode:
    sys.exit(f"the run failed: {stderr[-2000:]}")


def kill(config: str, workdir: pathlib.Path, how: str, rng: random.Random) -> bool:
  """Whether a start of the run was killed before it ended."""
  process = start(config, workdir)
  before, clock = _steps(workdir), time.time()
  wait = rng.uniform(0.5, 8.0) if how == "early" else 600.0
  steps = rng.randint(1, 6)
  while process.poll() is None and time.time() - clock < wait:
    if how == "step" and _steps(workdir) >= before + steps:
      time.sleep(rng.uniform(0, 0.05))
      break
    if how == "save" and list((workdir / "checkpoints").glob("*tmp*")):
      break
    time.sleep(0.002)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  return process.returncode == -signal.SIGKILL


def _steps(workdir: pathlib.Path) -> int:
  """How many steps the log has."""
  path = workdir / "metrics.jsonl"
  return path.read_text().count('"loss"') if path.exists() else 0


def lines(workdir: pathlib.Path) -> list[dict]:
  """metrics.jsonl, without what depends on the process."""
  text = (workdir / "metrics.jsonl").read_text()
  out = [json.loads(line) for line in text.splitlines()]
  return [{k: v for k, v in line.items() if k not in _OF_A_PROCESS} for line in out]


def differences(one: pathlib.Path, other: pathlib.Path) -> list[str]:
  """What differs between two finished runs."""
  out = []
  for name in ("adapter/adapter.safetensors", "adapter/adapter.json"):
    if (one / name).read_bytes() != (other / name).read_bytes():
      out.append(name)
  a, b = lines(one), lines(other)
  pairs = enumerate(zip(a, b, strict=False))
  out += [f"line {i}: {x} / {y}" for i, (x, y) in pairs if x != y]
  if len(a) != len(b):
    out.append(f"{len(a)} and {len(b)} log lines")
  left = {path.name for path in other.iterdir()} - {path.name for path in one.iterdir()}
  return out + [f"left behind: {name}" for name in sorted(left)]


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--kills", type=int, default=24)
  parser.add_argument("--config", default="configs/svft_banded.py")
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  rng, counts = random.Random(args.seed), {"early": 0, "step": 0, "save": 0}
  with tempfile.TemporaryDirectory() as tmp:
    whole, killed = pathlib.Path(tmp) / "whole", pathlib.Path(tmp) / "killed"
    finish(args.config, whole)
    for number in range(args.kills):
      how = list(counts)[number % 3]
      if not kill(args.config, killed, how, rng):
        sys.exit(f"the run ended before kill {number + 1}: make _STEPS larger")
      counts[how] += 1
      print(f"kill {number + 1} ({how}) after {_steps(killed)} steps", flush=True)
    finish(args.config, killed)
    found = differences(whole, killed)
  print(f"killed {counts}: " + ("the same bit for bit" if not found else "DIFFERENT"))
  sys.exit("\n".join(found[:20]) if found else 0)


if __name__ == "__main__":
  main()
