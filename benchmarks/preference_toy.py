"""A policy, a reward model and DPO on the policy's own samples: do they help?

  python benchmarks/preference_toy.py --seeds=3 [--out=runs/preference_toy]

Run again, it goes on where it stopped. For every seed, on the embedded task `prices`:

  policy    train.py --config=configs/preference_toy.py
  samples   of training problems that it has not seen, and of held-out ones; the task's
            checker labels them, which gives pairs.jsonl and held.jsonl
  reward    train.py --config=configs/reward_bt.py on these pairs, from the policy
  dpo       train.py --config=configs/dpo.py on these pairs, from the policy
  measures  accuracy on held-out pairs, best of N, sampled and greedy accuracy before
            and after DPO, its divergence from the policy, and what a lower temperature
            gives; see preference_toy_measures.py

Written to --out, and printed: table.md, with what is claimed below the tables. All
intervals are 95 %, by bootstrap over problems; differences are paired.
"""

import argparse
import itertools
import json
import os
import pathlib
import random
import subprocess
import sys

import preference_toy_measures as measures

ROOT = pathlib.Path(__file__).parents[1]
COPIES, MOST = 8, 4  # samples of a training problem, and pairs of one at most
HELD = 2  # pairs of a held-out problem at most
LIMITS = {  # what has to be at least so much; the KL negated
  "pairs": 0.85, "pairs - log p": 0.05, "N=8 reward - vote": 0.15,
  "N=8 reward - log p": 0.10, "sampled": 0.08, "-KL": -1.5, "log p of right": -0.3,
}  # fmt: skip
HEADS = (
  "| seed | pairs trained on | held-out pairs: reward | log p of the policy | "
  "difference | calibration error |\n|---|---:|---|---|---|---:|",
  "\n| seed | N | vote | best log p | best reward | weighted vote | some is right "
  "| reward - vote | reward - log p |\n|---|---:|---:|---:|---:|---:|---:|---|---|",
  "\n| seed | sampled before | after DPO | change | KL, nats of a sample | log p of a "
  "right answer | greedy before | after | lower temperature alone | training, s |\n"
  "|---|---:|---:|---|---|---|---:|---:|---|---|",
)


def command(*words):
  """Runs a command of the project; its output goes to the terminal."""
  subprocess.run([sys.executable, *map(str, words)], check=True, cwd=ROOT)


def write(path: pathlib.Path, text: str):
  """Writes a file at once, so that a stage that was stopped leaves none."""
  new = path.with_suffix(".tmp")
  new.write_text(text)
  os.replace(new, path)


def train(config: str, seed: int, run: pathlib.Path, *words) -> pathlib.Path:
  """A finished run."""
  command(
    "train.py", f"--config=configs/{config}.py", f"--workdir={run}",
    f"--config.seed={seed}", "--config.log.tracker=none", *words,
  )  # fmt: skip
  return run


def label(rows, drawn, most: int, seed: int) -> list[dict]:
  """Pairs of different texts, a right and a wrong one; at most so many of a problem."""
  from jaxpeft.data import prices

  rng, out = random.Random(seed), []
  for row, replies in zip(rows, drawn, strict=True):
    texts = sorted({reply.text for reply in replies if reply.text.strip()})
    good = [text for text in texts if prices.right(row, text)]
    both = [*itertools.product(good, [text for text in texts if text not in good])]
    for chosen, rejected in rng.sample(both, min(most, len(both))):
      out.append(dict(prompt=prices.prompt(row), chosen=chosen, rejected=rejected))
  return out


def stages(seed: int, folder: pathlib.Path, args) -> dict[str, pathlib.Path]:
  """Everything that is trained, and the files in between."""
  folder.mkdir(parents=True, exist_ok=True)
  at = {x: folder / x for x in ("policy", "model", "reward", "dpo")}
  at |= {x: folder / f"{x}.jsonl" for x in ("pairs", "held")}
  short = [f"--config.train.steps={args.steps}"] if args.steps else []
  train("preference_toy", seed, at["policy"])
  if not at["model"].exists():
    command("-m", "jaxpeft", "export", f"--ckpt={at['policy']}", f"--out={at['model']}")
  if not (at["pairs"].exists() and at["held"].exists()):
    samples(seed, at, args)
  data = [f"--config.data.train={at['pairs']}", f"--config.data.eval={at['held']}"]
  data += [*short, "--config.eval.task="]  # it is measured below
  own = [f"--config.model.source={at['model']}"]
  train(
    "reward_bt", seed, at["reward"], *data, *(own if args.start == "policy" else [])
  )
  train("dpo", seed, at["dpo"], *data, *own)
  return at


def samples(seed: int, at: dict[str, pathlib.Path], args):
  """Writes the pairs."""
  from jaxpeft import experiment

  model = experiment.load_run(at["policy"])
  some, held = measures.problems(args)
  for name, rows, copies, most, own in (
    ("held", held, measures.SAMPLES, HELD, 2),
    ("pairs", some, COPIES, MOST, 1),
  ):
    drawn = measures.draw(model, rows, copies, 1.0, 10 * seed + own)
    found = label(rows, drawn, most, seed)
    write(at[name], "".join(json.dumps(row) + "\n" for row in found))


def _show(x: dict, sign: str = "") -> str:
  low, high = x["interval"]
  return f"{x['value']:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def claims(found: dict) -> list[tuple[str, dict, bool]]:
  """(name, number with its interval, whether it holds) of what a seed has to show."""
  held, best, dpo = found["held"], found["best_of"], found["dpo"]
  kl = dpo["kl"]
  negated = dict(value=-kl["value"], interval=[-x for x in reversed(kl["interval"])])
  rows = [
    ("pairs", held["reward"], False),
    ("pairs - log p", held["reward - log p"], False),
    ("N=8 reward - vote", best["reward - vote"], True),
    ("N=8 reward - log p", best["reward - log p"], True),
    ("sampled", dpo["sampled"]["change"], True),
    ("-KL", negated, False),
    ("log p of right", dpo["right_logp"]["change"], False),
  ]
  return [
    (name, x, x["value"] >= LIMITS[name] and (x["interval"][0] > 0 or not above))
    for name, x, above in rows
  ]


def table(found: list[dict]) -> str:
  """The Markdown tables of all seeds."""
  lines = [HEADS[0]]
  for x in found:
    held = x["held"]
    lines.append(
      f"| {x['seed']} | {x['pairs']['count']} | {_show(held['reward'])} of "
      f"{held['count']} | {_show(held['log p'])} | "
      f"{_show(held['reward - log p'], '+')} | {held['reward']['ece']:.3f} |"
    )
  lines.append(HEADS[1])
  for x, n in itertools.product(found, measures.N):
    best = x["best_of"]
    shares = " | ".join(f"{share:.3f}" for share in best[str(n)].values())
    gaps = [_show(best[f"reward - {y}"], "+") for y in ("vote", "log p")]
    gaps = gaps if n == measures.MAIN else ["", ""]
    lines.append(f"| {x['seed']} | {n} | {shares} | {' | '.join(gaps)} |")
  lines.append(HEADS[2])
  for x in found:
    d = x["dpo"]
    before, after = (
      {name: d[name][key]["value"] for name in ("sampled", "right_logp", "greedy")}
      for key in ("before", "after")
    )
    cold = ", ".join(f"T={t}: {c['value']:.3f}" for t, c in x["temperature"].items())
    seconds = " + ".join(f"{s:.0f}" for s in x["train_s"].values())
    lines.append(
      f"| {x['seed']} | {before['sampled']:.3f} | {after['sampled']:.3f} | "
      f"{_show(d['sampled']['change'], '+')} | {_show(d['kl'])} | "
      f"{before['right_logp']:.2f} -> {after['right_logp']:.2f} | "
      f"{before['greedy']:.3f} | {after['greedy']:.3f} | {cold} | {seconds} |"
    )
  lines.append("\nClaimed for every seed; nothing is claimed about greedy answers:\n")
  for i, (name, limit) in enumerate(LIMITS.items()):
    own = [claims(x)[i] for x in found]
    each = ", ".join(_show(x, "+") for _, x, _ in own)
    holds = "yes" if all(good for _, _, good in own) else "NO"
    lines.append(f"* {name} >= {limit:g}: {holds}; seeds {each}")
  slow = max(sum(x["train_s"].values()) for x in found)
  lines.append(
    f"* training of the slowest seed: {slow:.0f} s (at most 300 on idle cores)"
  )
  return "\n".join(lines) + "\n"


def main():
  """Trains, measures and writes what is missing."""
  p = argparse.ArgumentParser(description="Trains and measures; see this file.")
  p.add_argument("--seeds", type=int, default=3)
  p.add_argument("--first", type=int, default=0, help="the first seed")
  p.add_argument(
    "--out", type=pathlib.Path, default=pathlib.Path("runs/preference_toy")
  )
  p.add_argument("--start", default="policy", choices=("base", "policy"),
                 help="of the reward model")  # fmt: skip
  p.add_argument("--drawn", type=int, default=1500, help="problems for pairs")
  p.add_argument("--problems", type=int, default=200, help="held-out problems")
  p.add_argument("--steps", type=int, help="of reward and dpo; default: the configs'")
  args = p.parse_args()
  found, out = [], args.out.resolve()
  for seed in range(args.first, args.first + args.seeds):
    folder = out / f"seed_{seed}"
    at, path = stages(seed, folder, args), folder / "measures.json"
    if not path.exists():
      write(path, json.dumps(measures.measure(seed, at, args), indent=1) + "\n")
    found.append(json.loads(path.read_text()))
  text = table(found)
  write(out / "table.md", text)
  print(text, flush=True)


if __name__ == "__main__":
  main()
