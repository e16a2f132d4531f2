"""Trains several configs, each with the same number of learning rates and seeds.

Each config is trained once with every learning rate of its grid, at seed 0. The rate
with the lowest held-out loss is then trained with further seeds. Each run is a
`train.py` process with its own directory OUT/NAME/, so the same command resumes a sweep
that was stopped.
"""

import math
import pathlib
import signal
import statistics
import subprocess
import sys
from typing import NamedTuple

from jaxpeft import config_file, console
from jaxpeft.errors import InputError
from jaxpeft.training import log

TRAIN = pathlib.Path(__file__).parents[2] / "train.py"


class Trained(NamedTuple):
  """All runs of one config; a run is the last line of its metrics.jsonl."""

  name: str
  grid: list[dict]  # one run per learning rate, at seed 0
  best: list[dict]  # one run per seed, at the best learning rate; best[0] is in grid
  factor: float  # the best learning rate, as a multiple of the config's own


def sweep(
  configs: list[str], seeds: int, times: list[float], out: pathlib.Path, extra: list
) -> list[Trained]:
  """Trains every config, except for the runs that are finished already.

  Args:
    configs: files as in configs/, or FILE:ARGUMENT.
    seeds: runs of each config with its best learning rate.
    times: grid of learning rates, as multiples of each config's own.
    out: directory of all runs.
    extra: further arguments of every train.py, e.g. "--config.train.steps=50".
  Raises:
    InputError: bad arguments, or a run that failed.
  """
  lrs = _check(configs, seeds, times, extra)
  names = config_file.names(configs)
  total, done = len(configs) * (len(times) + seeds - 1), 0
  found = []
  for path, name, own in zip(configs, names, lrs, strict=True):
    place = out / config_file.folder(name)
    grid = []
    for factor in times:
      done += 1
      console.note(f"compare {done}/{total}: {name}, {factor:g} x lr {own:g}, seed 0")
      grid.append(_run(path, place, own * factor, 0, extra))
    first = min(grid, key=_held_out)
    if "diverged" in first:
      raise InputError(f"{name} diverged at every learning rate; lower --times")
    lr, best = first["lr"], [first]
    for seed in range(1, seeds):
      done += 1
      console.note(f"compare {done}/{total}: {name}, lr {lr:g}, seed {seed}")
      best.append(_run(path, place, lr, seed, extra))
      if "diverged" in best[-1]:
        raise InputError(
          f"{name} diverged with seed {seed} at lr {lr:g}, the best at seed 0; "
          "lower --times"
        )
    found.append(Trained(name, grid, best, lr / own))
  return found


def _check(configs, seeds, times, extra) -> list[float]:
  """The learning rate of each config.

  Raises:
    InputError: anything that would fail later, before the first run starts.
  """
  if not configs:
    raise InputError("--configs names no file")
  if seeds < 1 or not times or not all(0 < x < math.inf for x in times):
    raise InputError(f"--seeds {seeds} and --times {times} must be positive")
  fixed = [
    word for word in extra if word.startswith(("--config.optim.lr", "--config.seed"))
  ]
  if fixed:
    raise InputError(
      f"compare sets the learning rate and the seed; leave out {fixed[0]}"
    )
  if not TRAIN.exists():
    raise InputError(f"{TRAIN} is missing: compare runs from a checkout of jaxpeft")
  config_file.names(configs)
  return [_read_lr(path, extra) for path in configs]


def _read_lr(path: str, extra: list) -> float:
  """The learning rate of a config, which must measure an accuracy."""
  changes = [word for word in extra if word.startswith("--config.")]
  try:
    config = config_file.load(path, changes)
  except Exception as e:  # a config file is code, which may raise anything
    raise InputError(f"cannot read the config {path}: {e}") from e
  if not (config.eval.task and config.data.eval):
    raise InputError(f"{path} has no accuracy to compare: set eval.task and data.eval")
  return float(config.optim.lr)


def _run(path: str, folder: pathlib.Path, lr: float, seed: int, extra: list) -> dict:
  """The last line of one run; train.py returns at once if the run is finished."""
  workdir = folder / f"lr{lr:.6g}-seed{seed}"
  command = [sys.executable, TRAIN, f"--config={path}", f"--workdir={workdir}"]
  command += [f"--config.optim.lr={lr!r}", f"--config.seed={seed}", *extra]
  status = _wait(command)
  lines = log.read(workdir / "metrics.jsonl")
  if status and any("not_finite" in line for line in lines):
    return dict(lr=lr, seed=seed, eval_loss=None, diverged=True, workdir=str(workdir))
  if status:
    raise InputError(
      f"{workdir} ended with status {status}; its error message is above. Run the same "
      "command to go on"
    )
  speeds = [line["tokens_per_s"] for line in lines if "tokens_per_s" in line]
  speed = statistics.median(speeds) if speeds else 0.0
  final = next(line for line in lines if "final" in line)
  texts = ("samples", "base_samples", "prompts")
  numbers = {k: x for k, x in final.items() if k not in texts}
  return numbers | dict(lr=lr, seed=seed, tokens_per_s=speed, workdir=str(workdir))


def _wait(command: list) -> int:
  """Runs a command that may save before Ctrl-C or SIGTERM ends it; its exit status.

  `subprocess.run` would kill the child 0.25 s after Ctrl-C, and SIGTERM would end this
  process alone and leave the child training.
  """
  with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
    old = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
      return process.wait()
    except KeyboardInterrupt:
      process.terminate()
      process.wait()
      raise
    finally:
      signal.signal(signal.SIGTERM, old)


def _held_out(run: dict) -> float:
  """The held-out loss that selects a learning rate; infinite for a diverged run."""
  loss = run["eval_loss"]
  return loss if loss is not None and math.isfinite(loss) else math.inf
