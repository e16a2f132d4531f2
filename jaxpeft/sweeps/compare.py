"""Compares several configs at an equal tuning budget: a table and a Pareto plot."""

import json
import pathlib
import statistics

from jaxpeft import console
from jaxpeft.evaluation.intervals import wilson
from jaxpeft.sweeps import few_shot, plots, sweep


def compare(
  configs: list[str],
  seeds: int,
  times: list[float],
  out: str,
  extra: list,
  shots: tuple[int, ...] = (),
):
  """Trains what is missing, and writes runs.jsonl, table.md and pareto.png.

  Args:
    configs: files as in configs/, or FILE:ARGUMENT.
    seeds: runs of each config with its best learning rate.
    times: grid of learning rates, as multiples of each config's own.
    out: directory of all runs and of the result.
    extra: further arguments of every train.py, e.g. "--config.train.steps=50".
    shots: numbers of shots with which the bases are asked, too; see `few_shot`.
  Returns:
    The table, as text.
  Raises:
    InputError: bad arguments, or a run that failed.
  """
  folder = pathlib.Path(out)
  plans = few_shot.plan(configs, list(shots), extra) if shots else {}
  trained = sweep.sweep(configs, seeds, times, folder, extra)
  runs = [run | dict(name=t.name) for t in trained for run in (*t.grid, *t.best[1:])]
  rows = [_summary(t.name, t.best, t.factor, times) for t in trained]
  rows += few_shot.rows(plans, folder) if plans else []
  rows.sort(key=lambda row: -row["accuracy"])
  (folder / "runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
  text = table(rows)
  (folder / "table.md").write_text(text + "\n")
  plots.pareto(rows, folder / "pareto.png")
  return text


def table(rows: list[dict]) -> str:
  """A Markdown table of the rows, with a note that explains its columns."""
  lines = [
    "| config | trained | accuracy | 95 % | seeds | lr | adapter | peak | tokens/s |",
    "|---|---:|---:|---|---|---:|---:|---:|---:|",
  ]
  for row in rows:
    low, high = row["interval"]
    if "shots" in row:  # nothing was trained
      lines.append(
        f"| {row['name']} | 0 | {row['accuracy']:.1%} | {low:.1%} to {high:.1%} | "
        "- | - | - | - | - |"
      )
      continue
    least, most = row["range"]
    edge = " (edge of the grid)" if row["edge"] else ""
    lines.append(
      f"| {row['name']} | {row['trained']:,} | {row['accuracy']:.1%} | "
      f"{low:.1%} to {high:.1%} | {least:.1%} to {most:.1%} | {row['lr']:g}{edge} | "
      f"{console.human(row['bytes'])}B | {row['peak'] / 2**20:.0f} MiB | "
      f"{row['tokens_per_s']:.0f} |"
    )
  first = next(row for row in rows if "shots" not in row)
  lines.append(
    f"\nEach accuracy is the mean of {first['count']} seeds on {first['problems']} "
    "held-out problems. 95 %: Wilson's interval of that mean for these problems. "
    "Seeds: the lowest and the highest accuracy. Each learning rate has the lowest "
    "held-out loss at seed 0, in a grid of the same size for every config."
  )
  return "\n".join(lines)


def _summary(name: str, runs: list[dict], factor: float, times: list[float]) -> dict:
  """The row of one config, from its runs with the best learning rate."""
  shares = [run["accuracy"] for run in runs]
  mean, problems = statistics.mean(shares), runs[0]["problems"]
  edge = len(times) > 1 and not min(times) * 1.01 < factor < max(times) * 0.99
  return dict(
    name=name,
    trained=runs[0]["trainable_parameters"],
    accuracy=mean,
    interval=wilson(round(mean * problems), problems),
    range=(min(shares), max(shares)),
    lr=runs[0]["lr"],
    edge=edge,
    bytes=runs[0]["adapter_bytes"],
    peak=runs[0]["peak_memory_bytes"],
    tokens_per_s=statistics.median(run["tokens_per_s"] for run in runs),
    count=len(runs),
    problems=problems,
  )
