"""Trains models that verify themselves, and compares strategies of asking them.

  python benchmarks/sets_toy.py --seeds=3 [--out=runs/sets_toy]

Run again, it goes on where it stopped. For the task `budget`, and for its control
`sums`, and for each seed:

  first    train.py --config=configs/sets_toy.py, wrong tries drawn by the generator
  own      transcripts of other training problems, with tries of this model in them
  second   train.py on these, from the first model, for fewer steps
  measure  python -m jaxpeft scale-test, on held-out problems

Written to --out, and printed: table.md, the mean of the seeds for every strategy, with
what is claimed below it; and a picture for each task. On two cores a training takes
about six minutes.
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
TASKS = ("budget", "sums")
STEPS, RATE = 600, 1e-3  # of the second stage
DRAWN, COPIES = 5000, 4  # training problems, and tries of each
SEED = 100  # of these problems; the first stage's have seed 0
MAIN = ("sets", 4, 6)  # strategy, m, n
VOTE = "self_consistency"
SHOWN = {  # strategy -> what the table calls it
  "greedy": "greedy", VOTE: "vote, m={m}", "best_of_n": "best-of-N, N={m}",
  "self_refine": "self-refine, n={n}", "sets": "SETS({m},{n})",
  "sets, verified_first": "SETS({m},{n}), verified first",
}  # fmt: skip


FLAT = ("greedy", VOTE, "best_of_n")  # strategies without rounds
ROUNDS = (2, 4, 6, 8)  # that the table shows


def command(*words):
  """Runs a command of the project; its output goes to the terminal."""
  subprocess.run([sys.executable, *map(str, words)], check=True, cwd=ROOT)


def train(task: str, seed: int, folder: pathlib.Path, args) -> pathlib.Path:
  """The run of the second stage; stages that are there are not repeated."""
  folder.mkdir(parents=True, exist_ok=True)
  first, own, model = (folder / x for x in ("first", "own.jsonl", "first_model"))
  words = [f"--config=configs/sets_toy.py:{task}", f"--config.seed={seed}"]
  words += ["--config.log.tracker=none"]
  short = [f"--config.train.steps={args.first}"] if args.first else []
  command("train.py", *words, f"--workdir={first}", *short)
  if not own.exists():
    lines = "".join(json.dumps(row) + "\n" for row in draw(task, seed, first, args))
    new = own.with_suffix(".tmp")
    new.write_text(lines)
    os.replace(new, own)
  if not model.exists():
    command("-m", "jaxpeft", "export", f"--ckpt={first}", f"--out={model}")
  command(
    "train.py", *words, f"--workdir={folder / 'second'}",
    f"--config.model.source={model}", f"--config.data.train={own}",
    f"--config.train.steps={args.second}", f"--config.optim.lr={RATE}",
  )  # fmt: skip
  return folder / "second"


def draw(task: str, seed: int, run: pathlib.Path, args) -> list[dict]:
  """Two transcripts of each problem that is drawn, with tries of a trained model."""
  from jaxpeft import experiment
  from jaxpeft.data import tries
  from jaxpeft.evaluation import tasks
  from jaxpeft.generation.ask import LocalAsk, Request
  from jaxpeft.generation.sampling import Sampling

  found, model = tasks.make(task), experiment.load_run(run)
  roles, rows = found.roles(None), tries.problems(found.kind, "train", args.drawn, SEED)
  new, stop = roles.limit["sample"], roles.stop["sample"]
  ask = LocalAsk(
    model.transformer, model.params, model.tokenizer, new, Sampling(1.0), seed, 256,
    "drawing tries",
  )  # fmt: skip
  replies = ask(
    [
      Request(roles.sample(row), None, stop, new, 1.0, (i, j, 0))
      for i, row in enumerate(rows)
      for j in range(COPIES)
    ]
  )
  texts = [roles.answer(reply.text) for reply in replies]
  own = [texts[i : i + COPIES] for i in range(0, len(texts), COPIES)]
  return [row for again in (0, 1) for row in tries.told(found.kind, rows, again, own)]


def measure(task: str, run: pathlib.Path, folder: pathlib.Path, args) -> dict:
  """The result of `scale-test`."""
  path = folder / "scale_test"
  if not (path / "result.json").exists():
    command(
      "-m", "jaxpeft", "scale-test", f"--ckpt={run}", f"--limit={args.problems}",
      f"--m={args.m}", f"--n={args.n}", f"--samples={args.samples}",
      "--temperatures=1,0.7,1", f"--out={path}",
    )  # fmt: skip
  return json.loads((path / "result.json").read_text())


def rows_of(result: dict) -> dict[tuple, dict]:
  """{(strategy, m, n): its row}."""
  return {(x["strategy"], x["m"], x["n"]): x for x in result["rows"]}


def mean(results: list[dict]) -> list[dict]:
  """Rows of the means over seeds, with the least and the largest accuracy."""
  seeds, out = list(map(rows_of, results)), []
  for key in seeds[0]:
    own = [rows[key] for rows in seeds]
    row: dict = dict(zip(("strategy", "m", "n"), key, strict=True))
    for name in ("accuracy", "tokens", "calls", "auacc", "ece"):
      row[name] = statistics.mean(x[name] for x in own)
    shares = [x["accuracy"] for x in own]
    out.append(row | dict(range=(min(shares), max(shares))))
  return out


def table(found: dict[str, list[dict]]) -> str:
  """The Markdown table of all tasks, side by side, and what is claimed."""
  means = {task: rows_of(dict(rows=mean(x))) for task, x in found.items()}
  head = " | ".join(f"{x}: tokens | accuracy | seeds | AUACC | ECE" for x in found)
  lines = [f"| strategy | {head} |", "|---|" + "---:|---:|---|---:|---:|" * len(found)]
  for key in next(iter(means.values())):
    if key[0] not in SHOWN or (key[0] not in FLAT and key[2] not in ROUNDS):
      continue
    cells = [SHOWN[key[0]].format(m=key[1], n=key[2])]
    for rows in means.values():
      x = rows[key]
      cells.append(
        f"{x['tokens']:.1f} | {x['accuracy']:.3f} | {x['range'][0]:.3f} to "
        f"{x['range'][1]:.3f} | {x['auacc']:.3f} | {x['ece']:.3f}"
      )
    lines.append(f"| {' | '.join(cells)} |")
  for task, results in found.items():
    lines += ["", f"{task}:", *_claims(results, means[task])]
  return "\n".join(lines) + "\n"


def pooled(gaps: list[dict]) -> tuple[float, float]:
  """(mean, half of its 95 % interval) of independent estimates with intervals."""
  halves = [(x["high"] - x["low"]) / 2 for x in gaps]
  mean_ = statistics.mean(x["value"] for x in gaps)
  return mean_, math.sqrt(sum(x * x for x in halves)) / len(halves)


def _claims(results: list[dict], rows: dict[tuple, dict]) -> list[str]:
  """Rates of each seed, what they predict, and differences at equal tokens."""
  lines = []
  for seed, result in enumerate(results):
    r = result["rates"]
    shares = ", ".join(f"{x} {r[x]:.3f}" for x in ("p0", "t", "f", "c", "k"))
    gaps = [abs(x["by_round"] - x["accuracy"]) for x in result["markov"] if x["n"] <= 4]
    rounds = " ".join(f"{x:.3f}" for x in r["c_by_round"])
    lines.append(
      f"* seed {seed}: {shares}; c by round {rounds}; the accuracy of a chain of up to "
      f"4 rounds is predicted within {max(gaps):.3f}"
    )
  if MAIN not in rows:
    return lines
  own = [rows_of(result)[MAIN] for result in results]
  name = SHOWN["sets"].format(m=MAIN[1], n=MAIN[2])
  for key, rival in (("minus_vote", "the vote"), ("minus_best_of_n", "best-of-N")):
    gaps = [x[key] for x in own]
    each = ", ".join(
      f"{x['value']:+.3f} [{x['low']:+.3f}, {x['high']:+.3f}]" for x in gaps
    )
    more = " (it has fewer tokens)" if any(x["beyond"] for x in gaps) else ""
    value, half = pooled(gaps)
    lines.append(
      f"* {name} minus {rival} at equal tokens{more}: {value:+.3f} "
      f"[{value - half:+.3f}, {value + half:+.3f}]; seeds {each}"
    )
  votes = sorted((x for x in rows.values() if x["strategy"] == VOTE),
                 key=lambda x: x["tokens"])  # fmt: skip
  rival = next((x for x in votes if x["tokens"] >= rows[MAIN]["tokens"]), votes[-1])
  lines.append(
    f"* AUACC of {name} ({rows[MAIN]['tokens']:.0f} tokens) minus that of the vote of "
    f"{rival['m']} ({rival['tokens']:.0f}): {rows[MAIN]['auacc'] - rival['auacc']:+.3f}"
  )
  return lines


def main():
  """Trains, measures and writes what is missing."""
  p = argparse.ArgumentParser(description="Trains and measures; see this file.")
  p.add_argument("--seeds", type=int, default=3)
  p.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/sets_toy"))
  p.add_argument("--tasks", default=",".join(TASKS))
  p.add_argument("--first", type=int, help="steps; default: the config's")
  p.add_argument("--second", type=int, default=STEPS)
  p.add_argument("--drawn", type=int, default=DRAWN, help="problems")
  p.add_argument("--problems", type=int, default=200)
  p.add_argument("--m", type=int, default=8, help="chains of a problem")
  p.add_argument("--n", type=int, default=8, help="rounds of a chain")
  p.add_argument("--samples", type=int, default=40)
  args = p.parse_args()
  found, out = {}, args.out.resolve()
  for task in args.tasks.split(","):
    for seed in range(args.seeds):
      folder = out / f"{task}_{seed}"
      run = train(task, seed, folder, args)
      found.setdefault(task, []).append(measure(task, run, folder, args))

  from jaxpeft.evaluation.curves import picture

  for task, results in found.items():
    title = f"{task}: strategies of a model that verifies itself, {args.seeds} seeds"
    picture.draw(dict(rows=mean(results)), out / f"{task}.png", title)
  text = table(found)
  (out / "table.md").write_text(text)
  print(text, flush=True)


if __name__ == "__main__":
  main()
