"""Time and memory of a training step in jaxpeft and in transformers + peft, on the CPU.

  python benchmarks/train_step.py [--rounds 3] [--steps 5]

The model is a Llama with width 512, 8 layers, feed-forward width 1408, 8 query and 4
key/value heads and a vocabulary of 4096. The batch is 4 x 256 tokens in float32, the
optimizer AdamW, and adapters are on all seven projections. Each figure comes from its
own process. The contestants take turns, so that drifts in the machine's speed affect
all of them alike. All inherit GLIBC_TUNABLES (docs/performance.md). Memory is the peak
resident set, above that of the loaded model.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

SHAPE = dict(vocab_size=4096, width=512, depth=8, heads=8, kv_heads=4, ff=1408)
BATCH, LENGTH, RANK = 4, 256, 16


def resident(peak: bool) -> int:
  """Bytes resident now, or the most since `reset_peak`. Linux only."""
  key = "VmHWM" if peak else "VmRSS"
  with open("/proc/self/status") as f:
    return 1024 * next(int(line.split()[1]) for line in f if line.startswith(key))


def reset_peak():
  """Resets the peak of resident memory."""
  with open("/proc/self/clear_refs", "w") as f:
    f.write("5")


def measure(step, steps: int) -> dict:
  """Seconds of each step after the first two, and peak bytes above the loaded model."""
  reset_peak()
  before = resident(peak=False)
  seconds = []
  for i in range(steps + 2):
    clock = time.perf_counter()
    step()
    if i > 1:
      seconds.append(time.perf_counter() - clock)
  return dict(seconds=seconds, bytes=resident(peak=True) - before)


def ours(adapter, steps: int) -> dict:
  """Measures jaxpeft with an adapter."""
  from ready import ready

  return measure(ready(SHAPE, adapter, BATCH, LENGTH).step, steps)


def peer_model(lora: bool):
  """The same model in transformers, with LoRA from peft if `lora`."""
  import peft
  import transformers

  config = transformers.LlamaConfig(
    vocab_size=SHAPE["vocab_size"],
    hidden_size=SHAPE["width"],
    intermediate_size=SHAPE["ff"],
    num_hidden_layers=SHAPE["depth"],
    num_attention_heads=SHAPE["heads"],
    num_key_value_heads=SHAPE["kv_heads"],
    max_position_embeddings=512,
    eos_token_id=None,
    pad_token_id=0,
  )
  model = transformers.LlamaForCausalLM(config)
  if not lora:
    return model
  names = [f"{n}_proj" for n in ("q", "k", "v", "o", "gate", "up", "down")]
  adapter = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names)
  return peft.get_peft_model(model, adapter)


def peer(_, steps: int) -> dict:
  """Measures torch + transformers + peft with LoRA."""
  import torch

  model = peer_model(lora=True)
  model.config.use_cache = False
  trained = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(trained, lr=1e-4)
  tokens = torch.randint(0, SHAPE["vocab_size"], (BATCH, LENGTH))

  def step():
    model(input_ids=tokens, labels=tokens).loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1e9)  # jaxpeft computes the norm, too
    optimizer.step()
    optimizer.zero_grad()

  return measure(step, steps)


def contestants():
  """{name: (function, None or (adapter's name, its options))}."""
  return {
    "torch + transformers + peft, LoRA r=16": (peer, None),
    "jaxpeft, LoRA r=16": (ours, ("LoRA", dict(rank=RANK, alpha=16.0))),
    "jaxpeft, SVFT banded d=8": (ours, ("SVFT", dict(off_diagonals=8))),
    "jaxpeft, SVFT plain": (ours, ("SVFT", dict(pattern="plain"))),
  }


def main():
  """Runs every contestant in turn, and prints one table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--steps", type=int, default=5)
  parser.add_argument("--only", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.only:
    run, adapter = contestants()[args.only]
    if adapter:
      import jaxpeft

      adapter = getattr(jaxpeft, adapter[0])(**adapter[1])
    print(json.dumps(run(adapter, args.steps)))
    return
  results = {name: [] for name in contestants()}
  for _ in range(args.rounds):
    for name, got in results.items():
      command = [sys.executable, __file__, "--only", name, "--steps", str(args.steps)]
      out = subprocess.run(command, check=True, capture_output=True, text=True)
      got.append(json.loads(out.stdout.splitlines()[-1]))
  first = next(iter(results))
  median = {
    n: statistics.median(t for g in got for t in g["seconds"])
    for n, got in results.items()
  }
  print(f"{os.cpu_count()} cores, {args.rounds} rounds of {args.steps} steps, medians")
  print(f"{'':<42}{'tokens/s':>9}{'x peer':>8}{'x LoRA':>8}{'peak MiB':>10}")
  for name, got in results.items():
    peak = statistics.median(g["bytes"] for g in got) / 2**20
    print(
      f"{name:<42}{BATCH * LENGTH / median[name]:>9.0f}"
      f"{median[first] / median[name]:>8.2f}"
      f"{median[name] / median['jaxpeft, LoRA r=16']:>8.2f}{peak:>10.0f}"
    )


if __name__ == "__main__":
  main()
