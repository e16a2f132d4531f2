"""Accuracy of token selection, after equal numbers of steps and after equal time.

  python benchmarks/token_learning.py [--fractions 1 0.5 0.3 0.1] [--seeds 3]
      [--steps 150] [--choose random] [--out DIRECTORY]

It trains LoRA on the embedded task as in configs/lora.py, with 8 rows per step. First,
steps of all fractions take turns, to measure the ratios of their times. Then each
fraction trains twice: for --steps steps, and for as many steps as fit in the time that
--steps steps take with all tokens. The learning-rate schedule has the length of the
run. DIRECTORY gets runs.jsonl, with one line per finished run, and learning.png.
"""

import argparse
import json
import os
import pathlib
import statistics
import time

import jax
import numpy as np

from jaxpeft import console, experiment, plotting
from jaxpeft.config import base as default_config
from jaxpeft.evaluation import evaluate
from jaxpeft.objectives import token_selection

ROUNDS, ROWS = 9, 8
EQUAL = ("steps", "seconds")


def configure(seed: int):
  """The config of a run, without its fraction and number of steps."""
  c = default_config()
  c.adapt.main = dict(name="LoRA", match="layers_.*/(attn|mlp)/.*", rank=8, alpha=16.0)
  c.optim.lr, c.seed = 1e-2, seed
  c.train.batch_size, c.eval.batch_size = ROWS, 200
  return c


class Learner:
  """A run that takes one step at a time."""

  def __init__(self, model, fraction: float, choose: str, seed: int, steps: int):
    self.config = configure(seed)
    self.config.train.steps = steps
    self.config.tokens.fraction, self.config.tokens.choose = fraction, choose
    prepared = experiment.prepare(self.config, model)
    self.exp = experiment.make(self.config, prepared)
    self.step_fn, self.state, self.taken = self.exp.make_step(), self.exp.state, 0

  def step(self) -> float:
    """Takes one step, and returns its seconds."""
    batch = self.exp.batch(self.taken)
    clock = time.perf_counter()
    self.state, metrics = self.step_fn(self.state, self.exp.frozen, batch)
    jax.block_until_ready(metrics)
    self.taken += 1
    return time.perf_counter() - clock

  def accuracy(self) -> float:
    """Accuracy on the held-out problems."""
    e, tuned = self.config.eval, self.exp.adapted(self.state.trainable)
    ask = experiment.ask(self.config, tuned, label="")
    return evaluate.answers(ask, self.exp.data.problems, e.task).accuracy[e.answer]


def times_of_a_step(model, fractions, choose) -> dict[float, float]:
  """{fraction: time of a step relative to all tokens}, as medians over rounds."""
  learners = {f: Learner(model, f, choose, 0, ROUNDS + 1) for f in {1.0, *fractions}}
  for learner in learners.values():
    learner.step()
  seconds = {f: [] for f in learners}
  for _ in range(ROUNDS):
    for f, learner in learners.items():
      seconds[f].append(learner.step())
  return {
    f: statistics.median(x / y for x, y in zip(mine, seconds[1.0], strict=True))
    for f, mine in seconds.items()
  }


def table(runs: list[dict]) -> str:
  """Markdown table with one line per fraction."""
  lines = [
    "| fraction | time of a step | equal steps | equal seconds | steps |",
    "| ---: | ---: | --- | --- | ---: |",
  ]
  for f in dict.fromkeys(run["fraction"] for run in runs):
    mine = [run for run in runs if run["fraction"] == f]
    cells = [_cell([run for run in mine if run["equal"] == x]) for x in EQUAL]
    most = max(run["steps"] for run in mine)
    lines.append(f"| {f:g} | {mine[0]['ratio']:.2f} | {' | '.join(cells)} | {most} |")
  return "\n".join(lines)


def _cell(runs) -> str:
  shares = [run["accuracy"] for run in runs]
  return f"{statistics.mean(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})"


def spread(runs: list[dict]) -> list[tuple]:
  """(fraction, "steps" or "seconds", mean, lowest, highest accuracy) of the runs."""
  shares = {}
  for run in runs:
    shares.setdefault((run["fraction"], run["equal"]), []).append(run["accuracy"])
  return [(*key, statistics.mean(x), min(x), max(x)) for key, x in shares.items()]


def plot(found: list[tuple], path: pathlib.Path):
  """Draws accuracy over the fraction; bars reach from the lowest to the highest seed.

  Args:
    found: from `spread`.
    path: the PNG file.
  """
  looks = {
    "steps": (plotting.BLUE, "o-", -0.5),
    "seconds": (plotting.ORANGE, "s--", 0.5),
  }
  with plotting.picture(path, 6.4, 3.8) as fig:
    axes = fig.subplots()
    for equal, (color, style, aside) in looks.items():
      rows = [(f, *numbers) for f, same, *numbers in found if same == equal]
      x, mean, low, high = 100 * np.array(rows).T
      bars = np.maximum(0, [mean - low, high - mean])
      axes.errorbar(
        x + aside, mean, bars, color=color, fmt=style, capsize=3,
        label=f"in equal {equal}", clip_on=False,
      )  # fmt: skip
    ticks = sorted({100 * f for f, *_ in found})
    axes.set(xlim=(0, 104), ylim=(0, 102), ylabel="accuracy, lowest to highest seed")
    axes.set_xlabel("tokens that carry gradient")
    axes.set_xticks(ticks, [f"{tick:.0f} %" for tick in ticks])
    plotting.linear_scale(axes.yaxis, lambda y: f"{y:.0f} %")
    title = "Accuracy with gradients for some tokens only"
    plotting.header(fig, title, *axes.get_legend_handles_labels())


def main():
  """Trains all runs, and prints one table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--fractions", type=float, nargs="+", default=[1, 0.5, 0.3, 0.1])
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--steps", type=int, default=150)
  parser.add_argument("--choose", default="random", choices=token_selection.CHOICES)
  parser.add_argument("--out", type=pathlib.Path, default="runs/token_learning")
  args = parser.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)
  model = experiment.read_base(configure(0))
  ratios = times_of_a_step(model, args.fractions, args.choose)
  print(f"{os.cpu_count()} cores, {args.seeds} seeds, {args.choose} tokens", flush=True)
  runs = []
  with (args.out / "runs.jsonl").open("w") as file:
    for seed in range(args.seeds):
      for f in args.fractions:
        for steps in dict.fromkeys((args.steps, round(args.steps / ratios[f]))):
          learner = Learner(model, f, args.choose, seed, steps)
          for _ in range(steps):
            learner.step()
          run = dict(fraction=f, seed=seed, ratio=ratios[f], steps=steps)
          run["accuracy"] = learner.accuracy()
          equal = ["steps"] * (steps == args.steps)
          equal += ["seconds"] * (steps == round(args.steps / ratios[f]))
          runs += [run | dict(equal=x) for x in equal]
          file.write(json.dumps(run) + "\n")
          file.flush()
          console.note(f"seed {seed}, {f:.0%}, {steps} steps: {run['accuracy']:.1%}")
  plot(spread(runs), args.out / "learning.png")
  print(table(runs))


if __name__ == "__main__":
  main()
