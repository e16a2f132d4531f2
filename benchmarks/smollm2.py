"""Fine-tunes a real model: learning rates, results, and speed compared with a peer.

  python benchmarks/smollm2.py rates     searches learning rates by the held-out loss
  python benchmarks/smollm2.py learning  runs train.py, and prints what it learned
  python benchmarks/smollm2.py speed     times a step here and in torch + peft

docs/real_model.md says how to get SmolLM2-135M-Instruct and the data. All run from the
repository's root; `speed` needs torch, transformers, peft and gguf, and Linux.

`rates` trains every method for a few steps with several rates, and takes the held-out
loss on training rows that are left out; the test rows are not looked at. `learning`
gives the held-out loss and the accuracy on test rows, before and after; run again, it
goes on where it stopped. `speed` measures each contestant in its own process, all in
turns (smollm2_step.py).
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
METHODS = ("lora", "svft", "pissa", "lora_xs", "qlora", "tokens")
LEFT_OUT = 64  # training rows on which `rates` takes the held-out loss


def file(method: str, data: str) -> str:
  """A config's path with its argument."""
  return f"configs/smollm2_{method}.py:{data}"


def changes(args, **more) -> list[str]:
  """Arguments that change a config; a dot in a key is written as two underscores."""
  more |= dict(model__source=args.model) if args.model else {}
  return [f"--config.{key.replace('__', '.')}={x}" for key, x in more.items()]


# ---- rates


def rates(args):
  """Prints the held-out loss by method and learning rate."""
  from jaxpeft import config_file

  bases = {}
  print(f"{args.data}: {args.steps} steps, seed {args.seed}, held-out loss before and "
        f"after on {LEFT_OUT} training rows left out", flush=True)  # fmt: skip
  for method in args.methods:
    found = {}
    for times in args.times:
      c = config_file.load(file(method, args.data), changes(
        args, train__steps=args.steps, seed=args.seed, eval__task=""
      )).unlock()  # fmt: skip
      c.optim.lr *= times
      before, found[c.optim.lr] = _short_run(c, bases)
      print(f"  {method:<8} lr {c.optim.lr:<7.2g} {before:.3f} -> "
            f"{found[c.optim.lr]:.4f}", flush=True)  # fmt: skip
    best = min(found, key=lambda lr: found[lr])
    edge = " (edge of the grid)" if best in (min(found), max(found)) else ""
    print(f"{method}: {best:.2g}{edge}", flush=True)


def _short_run(config, bases: dict) -> tuple[float, float]:
  """Held-out losses before and after; `bases` keeps the models that were read."""
  import jax

  from jaxpeft import experiment
  from jaxpeft.data import sources

  rows = sources.read(config.data.train)
  config.data.limit = len(rows) - LEFT_OUT
  kind = config.model.quantize
  with tempfile.TemporaryDirectory() as folder:
    config.data.eval = f"{folder}/left_out.jsonl"
    lines = (json.dumps(row) + "\n" for row in rows[-LEFT_OUT:])
    pathlib.Path(config.data.eval).write_text("".join(lines))
    if kind not in bases:
      bases[kind] = experiment.read_base(config)
    exp = experiment.make(config, experiment.prepare(config, bases[kind]))
  before = held_out_loss(exp, exp.state.trainable)
  step_fn, state = exp.make_step(), exp.state
  exp = exp._replace(state=None)  # the step takes the old state's memory
  for i in range(config.train.steps):
    state, metrics = step_fn(state, exp.frozen, exp.batch(i))
  jax.block_until_ready(metrics)
  return before, held_out_loss(exp, state.trainable)


def held_out_loss(exp, trainable) -> float:
  """Mean loss in nats of the supervised tokens of an experiment's held-out rows."""
  from jaxpeft.evaluation import evaluate

  net, examples = exp.model.transformer, exp.data.held_out
  found = evaluate.held_out(exp.config, net, exp.objective, examples)
  return found(exp.adapted(trainable).params)


# ---- learning


def learning(args):
  """Trains every method with every seed by train.py, and prints one table."""
  runs, before = [], {}
  for data in args.data:
    before[data] = _base_loss(args, data)
    print(f"{data}: held-out loss of the base {before[data]:.3f}", flush=True)
    for seed in range(args.seeds):
      for method in args.methods:
        folder = pathlib.Path(args.out, f"{method}_{data}_{seed}")
        command = [sys.executable, "train.py", f"--config={file(method, data)}"]
        command += [f"--workdir={folder}", *changes(args, seed=seed)]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        runs.append(json.loads(lines[-1]) | dict(method=method, data=data))
        print(f"{folder}: {_line(runs[-1])}", flush=True)
  print(learned(runs, before))


def _line(run: dict) -> str:
  shares = f"{run['base_accuracy']:.1%} -> {run['accuracy']:.1%} of {run['problems']}"
  return f"loss {run['eval_loss']:.3f}, accuracy {shares}, {run['wall_s']:.0f} s"


def _base_loss(args, data: str) -> float:
  """Held-out loss before training, in a process of its own that gives memory back."""
  command = [
    sys.executable,
    __file__,
    "base",
    f"--data={data}",
    f"--model={args.model}",
  ]
  done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE)
  return float(done.stdout.split()[-1])


def base(args):
  """Prints the held-out loss of the base model on a data set."""
  from jaxpeft import config_file, experiment

  c = config_file.load(file("lora", args.data), changes(args, eval__task=""))
  exp = experiment.make(c)  # LoRA starts as the base
  print(held_out_loss(exp, exp.state.trainable))


def learned(runs: list[dict], before: dict) -> str:
  """Markdown table of the runs: means over seeds.

  The 95 % are Wilson's interval of the mean accuracy, in whole problems.
  """
  from jaxpeft.evaluation.intervals import wilson

  lines = [
    "| data | method | trained | held-out loss | by seed | accuracy | 95 % | by seed "
    "| problems | steps |",
    "| --- | --- | ---: | --- | --- | --- | --- | --- | ---: | ---: |",
  ]
  for data, method in dict.fromkeys((run["data"], run["method"]) for run in runs):
    mine = [run for run in runs if (run["data"], run["method"]) == (data, method)]
    n, losses = mine[0]["problems"], [run["eval_loss"] for run in mine]
    hits = [run["accuracy"] for run in mine]
    low, high = wilson(round(statistics.mean(hits) * n), n)
    lines.append(
      f"| {data} | {method} | {mine[0]['trainable_parameters']:,} "
      f"| {before[data]:.3f} -> {statistics.mean(losses):.3f} "
      f"| {' '.join(f'{x:.3f}' for x in losses)} "
      f"| {mine[0]['base_accuracy']:.1%} -> {statistics.mean(hits):.1%} "
      f"| {low:.1%} to {high:.1%} | {' '.join(f'{x:.1%}' for x in hits)} "
      f"| {n} | {mine[0]['step']} |"
    )
  return "\n".join(lines)


# ---- speed


def speed(args):
  """Measures a training step of every contestant in turns, and prints one table."""
  import smollm2_step

  names = args.only or list(smollm2_step.CONTESTANTS)
  results = {name: [] for name in names}
  with tempfile.TemporaryDirectory() as folder:
    rows = pathlib.Path(folder, "rows.json")
    command = [sys.executable, __file__, "rows", str(rows), f"--steps={args.steps + 2}"]
    subprocess.run([*command, f"--model={args.model}"], check=True, cwd=ROOT)
    for number in range(args.rounds):
      for name, got in results.items():
        command = [sys.executable, __file__, "one", name, str(rows)]
        command += [f"--model={args.model}"]
        done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE)
        got.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"round {number + 1}: {name}: {got[-1]}", file=sys.stderr, flush=True)
  about = f"{os.cpu_count()} cores, {args.rounds} rounds of {args.steps} steps of 1 x "
  print(f"{about}{smollm2_step.LENGTH}, medians; peaks in MB, ratios within a round")
  heads = "tokens/s", "x peer", "CPU s", "x peer", "loss", "process", "x peer"
  heads = [f"{x:>{n}}" for x, n in zip(heads, (9, 8, 7, 8, 8, 9, 8), strict=True)]
  print(f"{'':<28}{''.join(heads)}{'steps':>7}{'x peer':>8}{'before':>8}")
  for name in names:
    print(_row(name, results[name], results[names[0]], smollm2_step.LENGTH))


def _row(name: str, got, first, length: int) -> str:
  """A contestant's line: medians over rounds of its own numbers, and of ratios."""
  middle = statistics.median
  seconds = [middle(g["seconds"]) for g in got]
  fast = middle(middle(f["seconds"]) / s for f, s in zip(first, seconds, strict=True))
  used = [middle(g["cpu"]) for g in got]
  busy = middle(u / middle(f["cpu"]) for f, u in zip(first, used, strict=True))
  cells = [f"{name:<28}{length / middle(seconds):>9.0f}{fast:>8.2f}"
           f"{middle(used):>7.1f}{busy:>8.2f}{got[0]['losses'][0]:>8.4f}"]  # fmt: skip
  for key, width in (("peak", 9), ("steps", 7)):
    share = middle(g[key] / f[key] for g, f in zip(got, first, strict=True))
    cells.append(f"{middle(g[key] for g in got) / 1e6:>{width}.0f}{share:>8.2f}")
  return "".join(cells) + f"{middle(g['loaded'] for g in got) / 1e6:>8.0f}"


def rows(args):
  """Writes rows of tokens for `speed`: problems of GSM8K, one after another."""
  import smollm2_step

  from jaxpeft import config_file, experiment
  from jaxpeft.data import sources

  c = config_file.load("configs/smollm2_lora.py", changes(args))
  texts = (f"{row['question']}\n{row['answer']}" for row in sources.read(c.data.train))
  length, found, ids = smollm2_step.LENGTH, [], []
  words = experiment.read_base(c).tokenizer
  while len(found) < args.steps:
    ids += words.encode(next(texts) + "\n\n")
    if len(ids) >= length:
      found, ids = [*found, ids[:length]], []
  pathlib.Path(args.out).write_text(json.dumps(found))


def one(args):
  """Measures one contestant of `speed` in this process."""
  import smollm2_step

  from jaxpeft import config_file

  source = config_file.load("configs/smollm2_lora.py", changes(args)).model.source
  found = json.loads(pathlib.Path(args.rows).read_text())
  print(json.dumps(smollm2_step.run(args.name, source, found)))


# part -> its arguments, with their defaults and number
PARTS = {
  rates: [
    ("--data", dict(default="topics")),
    ("--methods", dict(nargs="+", default=METHODS)),
    ("--times", dict(nargs="+", type=float, default=(1 / 3, 1, 3))),
    ("--steps", dict(type=int, default=24)),
    ("--seed", dict(type=int, default=0)),
  ],
  learning: [
    ("--data", dict(nargs="+", default=("topics", "gsm8k"))),
    ("--methods", dict(nargs="+", default=("lora", "svft"))),
    ("--seeds", dict(type=int, default=2)),
    ("--out", dict(default="runs/smollm2")),
  ],
  speed: [
    ("--rounds", dict(type=int, default=3)),
    ("--steps", dict(type=int, default=5)),
    ("--only", dict(nargs="+", help="some contestants; the first is the reference")),
  ],
  base: [("--data", dict())],
  rows: [("out", dict()), ("--steps", dict(type=int))],
  one: [("name", dict()), ("rows", dict())],
}


def main():
  """Runs one part."""
  form = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
  parts = parser.add_subparsers(required=True)
  for part, arguments in PARTS.items():
    sub = parts.add_parser(part.__name__, description=part.__doc__)
    sub.set_defaults(run=part)
    sub.add_argument("--model", default="", help="instead of the configs' model.source")
    for name, options in arguments:
      sub.add_argument(name, **options)
  args = parser.parse_args()
  args.run(args)


if __name__ == "__main__":
  main()
