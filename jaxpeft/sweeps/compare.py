"""Trains several configs with an equal tuning budget, and shows them side by side.

Every config is trained once with each learning rate of the same grid around its own, at
the first seed; the one with the least held-out loss is then trained with further seeds.
Each run is a `train.py` of its own in OUT/NAME/, so a comparison that was stopped goes
on with the run it was at.
"""

import json
import math
import pathlib
import signal
import statistics
import subprocess
import sys

from jaxpeft import config_file, console
from jaxpeft.errors import InputError
from jaxpeft.evaluation import evaluate
from jaxpeft.training import log

TRAIN = pathlib.Path(__file__).parents[2] / "train.py"


def compare(configs: list[str], seeds: int, times: list[float], out: str, extra: list):
  """Trains what is missing, and writes runs.jsonl, table.md and pareto.png.

  Args:
    configs: files as in configs/.
    seeds: runs of each config with its best learning rate.
    times: grid of learning rates, as multiples of each config's own.
    out: directory of all runs and of the result.
    extra: further arguments of every train.py, e.g. "--config.train.steps=50".
  Returns:
    The table, as text.
  Raises:
    InputError: bad arguments, or a run that failed.
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
  names = [pathlib.Path(path).stem for path in configs]
  if len(set(names)) < len(names):
    raise InputError(f"two configs have the same name: {names}")
  lrs = [_read_lr(path, extra) for path in configs]
  folder = pathlib.Path(out)
  total, done = len(configs) * (len(times) + seeds - 1), 0
  rows, raw = [], []
  for name, path, own in zip(names, configs, lrs, strict=True):
    grid = []
    for factor in times:
      done += 1
      console.note(f"compare {done}/{total}: {name}, {factor:g} x lr {own:g}, seed 0")
      grid.append(_run(path, folder / name, own * factor, 0, extra))
    best = min(grid, key=_held_out)
    if "diverged" in best:
      raise InputError(f"{name} diverged at every learning rate; lower --times")
    runs = [best]
    for seed in range(1, seeds):
      done += 1
      console.note(f"compare {done}/{total}: {name}, lr {best['lr']:g}, seed {seed}")
      runs.append(_run(path, folder / name, best["lr"], seed, extra))
      if "diverged" in runs[-1]:
        raise InputError(
          f"{name} diverged with seed {seed} at lr {best['lr']:g}, the best at seed 0; "
          "lower --times"
        )
    raw += [run | dict(name=name) for run in (*grid, *runs[1:])]
    rows.append(_summary(name, runs, best["lr"] / own, times))
  rows.sort(key=lambda row: -row["accuracy"])
  (folder / "runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in raw))
  text = table(rows)
  (folder / "table.md").write_text(text + "\n")
  plot(rows, folder / "pareto.png")
  return text


def table(rows: list[dict]) -> str:
  """Markdown; the notes tell what each column is."""
  lines = [
    "| config | trained | accuracy | 95 % | seeds | lr | adapter | peak | tokens/s |",
    "|---|---:|---:|---|---|---:|---:|---:|---:|",
  ]
  for row in rows:
    low, high = row["interval"]
    least, most = row["range"]
    edge = " (edge of the grid)" if row["edge"] else ""
    lines.append(
      f"| {row['name']} | {row['trained']:,} | {row['accuracy']:.1%} | "
      f"{low:.1%} to {high:.1%} | {least:.1%} to {most:.1%} | {row['lr']:g}{edge} | "
      f"{console.human(row['bytes'])}B | {row['peak'] / 2**20:.0f} MiB | "
      f"{row['tokens_per_s']:.0f} |"
    )
  first = rows[0]
  lines.append(
    f"\nMeans of {first['count']} seeds on {first['problems']} held-out problems. "
    "95 %: Wilson's interval of the mean for so many problems; seeds: the least and "
    "the most. Learning rates were chosen at one seed by the held-out loss, from a "
    "grid of the same size for all."
  )
  return "\n".join(lines)


def plot(rows: list[dict], path: pathlib.Path):
  """Accuracy with its interval against trained parameters."""
  from matplotlib import figure

  fig = figure.Figure(figsize=(7, 4.5), layout="constrained")
  axes = fig.subplots()
  best, label = -1.0, (0, 0.0)
  for row in sorted(rows, key=lambda row: (row["trained"], -row["accuracy"])):
    low, high = row["interval"]
    ahead = row["accuracy"] > best  # none with fewer parameters is as accurate
    best = max(best, row["accuracy"])
    axes.errorbar(
      row["trained"],
      row["accuracy"],
      [[max(0, row["accuracy"] - low)], [max(0, high - row["accuracy"])]],
      fmt="o",
      color="C0" if ahead else "0.6",
    )
    # Names of points at one place go below each other.
    beside = label[0] > row["trained"] / 1.2
    y = min(row["accuracy"], label[1] - 0.03) if beside else row["accuracy"]
    label = (row["trained"], y)
    near = any(1.2 < other["trained"] / row["trained"] < 3 for other in rows)
    axes.annotate(
      row["name"],
      label,
      xytext=(-6 if near else 6, -3),
      textcoords="offset points",
      ha="right" if near else "left",
      fontsize=8,
    )
  axes.set(xscale="log", xlabel="trained parameters", ylabel="accuracy", ylim=(0, 1.02))
  axes.set_title("colored: nothing smaller is as accurate", fontsize=9)
  fig.savefig(path, dpi=130)


def _run(path: str, folder: pathlib.Path, lr: float, seed: int, extra: list) -> dict:
  """The final line of one run, trained if it is not finished."""
  workdir = folder / f"lr{lr:.6g}-seed{seed}"
  command = [sys.executable, TRAIN, f"--config={path}", f"--workdir={workdir}"]
  command += [f"--config.optim.lr={lr!r}", f"--config.seed={seed}", *extra]
  status = _wait(command)
  lines = log.read(workdir / "metrics.jsonl")
  if status and any("not_finite" in line for line in lines):
    return dict(lr=lr, seed=seed, eval_loss=None, diverged=True, workdir=str(workdir))
  if status:
    raise InputError(
      f"{workdir} ended with status {status}; its message is above. Run the same "
      "command to go on"
    )
  speeds = [line["tokens_per_s"] for line in lines if "tokens_per_s" in line]
  speed = statistics.median(speeds) if speeds else 0.0
  final = next(line for line in lines if "final" in line)
  drop = ("samples", "base_samples", "prompts")
  kept = {k: x for k, x in final.items() if k not in drop}
  return kept | dict(lr=lr, seed=seed, tokens_per_s=speed, workdir=str(workdir))


def _wait(command: list) -> int:
  """The exit status of a run, which Ctrl-C and SIGTERM let save before it ends.

  `subprocess.run` would kill it a quarter of a second after Ctrl-C, and SIGTERM would
  leave it training on alone.
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
  """For the choice of a learning rate; a run that diverged is the worst."""
  loss = run["eval_loss"]
  return loss if loss is not None and math.isfinite(loss) else math.inf


def _summary(name: str, runs: list[dict], factor: float, times: list[float]) -> dict:
  shares = [run["accuracy"] for run in runs]
  mean, problems = statistics.mean(shares), runs[0]["problems"]
  edge = len(times) > 1 and not min(times) * 1.01 < factor < max(times) * 0.99
  return dict(
    name=name,
    trained=runs[0]["trainable_parameters"],
    accuracy=mean,
    interval=evaluate.wilson(mean * problems, problems),
    range=(min(shares), max(shares)),
    lr=runs[0]["lr"],
    edge=edge,
    bytes=runs[0]["adapter_bytes"],
    peak=runs[0]["peak_memory_bytes"],
    tokens_per_s=statistics.median(run["tokens_per_s"] for run in runs),
    count=len(runs),
    problems=problems,
  )


def _read_lr(path: str, extra: list) -> float:
  """The learning rate of a config, which must have an accuracy to compare."""
  changes = [word for word in extra if word.startswith("--config.")]
  try:
    config = config_file.load(path, changes)
  except Exception as e:  # whatever a config file does wrong
    raise InputError(f"cannot read the config {path}: {e}") from e
  if not (config.eval.task and config.data.eval):
    raise InputError(f"{path} has no accuracy to compare: set eval.task and data.eval")
  return float(config.optim.lr)
