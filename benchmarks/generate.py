"""Speed of greedy decoding in jaxpeft and in transformers (+ peft), on the CPU.

  python benchmarks/generate.py [--rounds 3]

It uses the model of benchmarks/train_step.py in float32, with batch size 8, prompts of
32 tokens, 128 new tokens and no stop tokens; once without an adapter and once with LoRA
r=16, which neither side merges into the weights. Compilation is not counted, because
the first call is not timed. Each figure comes from its own process, and the contestants
take turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from train_step import RANK, SHAPE, peer_model

BATCH, PROMPT, NEW = 8, 32, 128


def timed(call, repeats: int = 3) -> list[float]:
  """Seconds of each call after the first."""
  call()
  seconds = []
  for _ in range(repeats):
    clock = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - clock)
  return seconds


def ours(lora: bool) -> list[float]:
  """Seconds of each call to jaxpeft."""
  import jax
  import numpy as np

  import jaxpeft
  from jaxpeft import model
  from jaxpeft.generation import decode

  config = jaxpeft.ModelConfig("llama", head_dim=64, max_positions=512, **SHAPE)
  net = jaxpeft.Transformer(config)
  params = model.init(net, 0)
  if lora:
    rules = {"layers_.*/(attn|mlp)/.*": jaxpeft.LoRA(rank=RANK, alpha=float(RANK))}
    params = jaxpeft.adapt(params, rules, jax.random.key(0))
  prompts = np.random.default_rng(0).integers(3, 4096, (BATCH, PROMPT)).tolist()

  def call():
    new = decode.generate(net, params, prompts, NEW)
    assert all(len(row) == NEW for row in new)

  return timed(call)


def peer(lora: bool) -> list[float]:
  """Seconds of each call to torch + transformers, and peft if `lora`."""
  import torch

  model = peer_model(lora).eval()
  tokens = torch.randint(3, 4096, (BATCH, PROMPT))
  mask = torch.ones_like(tokens)

  def call():
    with torch.inference_mode():
      out = model.generate(
        input_ids=tokens, attention_mask=mask, max_new_tokens=NEW, do_sample=False
      )
    assert out.shape == (BATCH, PROMPT + NEW)

  return timed(call)


CONTESTANTS = {
  "transformers": (peer, False),
  "jaxpeft": (ours, False),
  "transformers + peft, LoRA r=16": (peer, True),
  "jaxpeft, LoRA r=16": (ours, True),
}


def main():
  """Runs every contestant in turn, and prints one table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--only", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.only:
    run, lora = CONTESTANTS[args.only]
    print(json.dumps(run(lora)))
    return
  seconds = {name: [] for name in CONTESTANTS}
  for _ in range(args.rounds):
    for name, got in seconds.items():
      command = [sys.executable, __file__, "--only", name]
      out = subprocess.run(command, check=True, capture_output=True, text=True)
      got += json.loads(out.stdout.splitlines()[-1])
  print(
    f"{os.cpu_count()} cores, batch {BATCH}, {NEW} new tokens, "
    f"{args.rounds} rounds, medians"
  )
  print(f"{'':<34}{'tokens/s':>9}{'x peer':>8}")
  names = list(CONTESTANTS)
  for i, name in enumerate(names):
    own = statistics.median(seconds[name])
    other = statistics.median(seconds[names[i - i % 2]])
    print(f"{name:<34}{BATCH * NEW / own:>9.0f}{other / own:>8.2f}")


if __name__ == "__main__":
  main()
