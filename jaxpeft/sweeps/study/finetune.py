"""A study of fine-tuning: the held-out loss against trained parameters and data.

Each run trains a LoRA of one rank for one pass over one number of rows, with its own
schedule. If there are several learning rates, only the best one for each rank and
number of rows counts. The runs are trained one after another and share the base model.
"""

import csv
import math
import os
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from jaxpeft import console, experiment, plotting
from jaxpeft.errors import InputError
from jaxpeft.evaluation import evaluate
from jaxpeft.scaling import laws, product
from jaxpeft.sweeps.study.record import Record
from jaxpeft.training import workdir

COLUMNS = "run rank n d step loss rate".split()


class Run(NamedTuple):
  """One adapter that is trained on one number of rows."""

  name: str
  rank: int
  rows: int
  rate: float
  seed: int


def runs(config) -> list[Run]:
  """All runs of the study.

  Raises:
    InputError: the options describe no study.
  """
  s = config.scaling
  for key in ("ranks", "rows"):
    for value in s[key]:
      if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"scaling.{key}: {value!r} is not a whole number above 0")
  rates = tuple(s.rates) or (config.optim.lr,)
  for rate in rates:
    if isinstance(rate, str | bool) or not 0 < rate < math.inf:
      raise InputError(f"scaling.rates: {rate!r} is not a finite number above 0")
  for key, values in (("ranks", s.ranks), ("rows", s.rows), ("rates", rates)):
    if len(set(values)) < len(values):
      raise InputError(f"scaling.{key} {tuple(values)} has a value twice")
  method = config.adapt.get("main")
  if method is None or "rank" not in method:
    raise InputError(
      "scaling.ranks needs an adapter config.adapt.main with a rank, e.g. LoRA"
    )
  if not s.rows or not 1 <= s.seeds <= 1000:
    raise InputError(
      f"scaling.rows {tuple(s.rows)} and scaling.seeds {s.seeds} give no runs"
    )
  return [
    Run(f"r{rank}-d{rows}-lr{rate:g}-s{seed}", rank, rows, float(rate), seed)
    for rank in s.ranks for rows in s.rows for rate in rates for seed in range(s.seeds)
  ]  # fmt: skip


def run(config, out: str) -> str:
  """Trains what is missing in a directory, fits the law, and returns the text.

  Writes points.csv (the best rate of each rank and number of rows), fits.txt, law.json
  and finetuning.png.

  Raises:
    InputError: wrong options, or a directory of another study.
  """
  todo = runs(config)
  workdir.check(out, config)
  new = not (pathlib.Path(out) / "points.jsonl").exists()
  base = experiment.read_base(config) if new else None  # may fail: nothing is written
  folder = workdir.prepare(out, config)
  record = Record(folder / "points.jsonl")
  missing = [one for one in todo if not record.ended(one.name)]
  if missing and base is None:
    base = experiment.read_base(config)
  with console.Bar("fine-tuning", len(todo), "runs") as bar:
    bar.update(len(todo) - len(missing))
    for one in missing:
      record.add([_measure(config, base, one)])
      bar.update()
  rows = best(record.lines)
  new = folder / "points.tmp"
  with open(new, "w", newline="") as file:
    writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
  os.replace(new, folder / "points.csv")
  text = fitted(rows, folder)
  (folder / "fits.txt").write_text(text + "\n")
  return text


def best(lines: list[dict]) -> list[dict]:
  """The line with the lowest loss for each rank, number of rows and seed."""
  found: dict = {}
  for line in lines:
    key = line["rank"], line["d"], line["seed"]
    loss = math.inf if line["loss"] is None else line["loss"]
    if math.isfinite(loss) and (key not in found or loss < found[key]["loss"]):
      found[key] = line
  return [found[key] for key in sorted(found)]


def fitted(rows: list[dict], folder: pathlib.Path, samples: int = 1000) -> str:
  """The law of the rows, with intervals; writes law.json and finetuning.png."""
  n, d, loss = (np.array([row[k] for row in rows], float) for k in ("n", "d", "loss"))
  law = product.fit(n, d, loss)
  drawn = product.bootstrap(n, d, loss, samples)
  span = dict(n=(n.min(), n.max()), d=(d.min(), d.max()))
  about = f"fine-tuning, {len(rows)} runs; n: trained parameters, d: rows of data"
  laws.write(laws.Fitted(law, about, "all", span, drawn), folder / "law.json")
  error = float(np.sqrt(np.mean(np.log(law.loss(n, d) / loss) ** 2)))
  lines = [f"L = E + A / (X^alpha D^beta), X trained parameters, D rows; {len(n)} runs"]
  for name in ("E", "alpha", "beta", "A"):
    low, high = np.percentile(drawn[name], [2.5, 97.5])
    value = getattr(law, name)
    lines.append(f"  {name:<6}{value:>10.4g}   95 %: {low:.4g} to {high:.4g}")
  lines.append(f"root mean square of the residuals of ln L: {error:.4f}")
  low, high = np.percentile(drawn["alpha"], [2.5, 97.5])
  more = f"{2**law.alpha:.2f} times as far above E is the loss with half the parameters"
  lines.append(
    f"{more}, {2**law.beta:.2f} times with half the data"
    + ("; the interval of alpha holds 0." if low <= 0 <= high else ".")
  )
  _draw(law, rows, folder / "finetuning.png")
  return "\n".join(lines)


def _measure(config, base, one: Run) -> dict:
  """The line of one run."""
  c = config.copy_and_resolve_references().unlock()
  ratio = c.adapt.main.get("alpha", c.adapt.main.rank) / c.adapt.main.rank
  c.adapt.main.rank, c.adapt.main.alpha = one.rank, ratio * one.rank
  c.data.limit, c.train.epochs = one.rows, 1.0
  c.optim.lr, c.seed = one.rate, config.seed + one.seed
  exp = experiment.make(c, experiment.prepare(c, base))
  step, state, exp = exp.make_step(), exp.state, exp._replace(state=None)
  for i in range(exp.config.train.steps):
    state, _ = step(state, exp.frozen, exp.batch(i))
  found = evaluate.held_out(exp.config, exp.model.transformer, exp.objective,
                            exp.data.held_out)  # fmt: skip
  loss = float(found(exp.adapted(state.trainable).params))
  good = int(state.bad_step) < 0 and math.isfinite(loss)
  trained = sum(x.size for x in jax.tree.leaves(state.trainable))
  return dict(
    run=one.name, rank=one.rank, n=trained, d=one.rows, step=exp.config.train.steps,
    loss=loss if good else None, rate=one.rate, seed=one.seed, final=True,
  )  # fmt: skip


def _draw(law: laws.Multiplicative, rows: list[dict], path):
  """Measured losses and the law, against rows of data, for each rank."""
  colors = (plotting.BLUE, plotting.ORANGE, plotting.GREEN, plotting.PINK, plotting.SKY)
  marks = "os^Dv"
  d = np.array([row["d"] for row in rows], float)
  line = np.geomspace(d.min(), d.max(), 60)
  with plotting.picture(path, 5.5, 4.2) as fig:
    ax = fig.subplots()
    for i, rank in enumerate(sorted({row["rank"] for row in rows})):
      some = [row for row in rows if row["rank"] == rank]
      color = colors[i % 5]
      ax.plot([r["d"] for r in some], [r["loss"] for r in some], marks[i % 5],
              color=color, ms=5, label=f"rank {rank}")  # fmt: skip
      ax.plot(line, law.loss(some[0]["n"], line), color=color, lw=1)
    plotting.log_scale(ax.xaxis, plotting.short, d.min() / 1.2, d.max() * 1.2)
    ax.set(xlabel="rows of data", ylabel="held-out loss, nats per token")
    title = f"Fine-tuning: L - E falls as X^-{law.alpha:.2f} D^-{law.beta:.2f}"
    plotting.header(fig, title, *ax.get_legend_handles_labels())
