"""Speed of answering many prompts: shared reading, continuous batching, guessed tokens.

  python benchmarks/answers.py copies      the toy: 16 copies of 16 prompts
  python benchmarks/answers.py uneven      SmolLM2: prompts of GSM8K, and transformers
  python benchmarks/answers.py guesses     SmolLM2: texts that repeat their prompt

docs/real_model.md says how to get SmolLM2-135M-Instruct and GSM8K; run this from the
repository's root. Everything is greedy and in float32. Each contestant answers once to
compile, and is then timed `--rounds` times in turns with the others.

  copies   answers of 8 tokens to prompts of 48, with each prompt read once or 16 times
  uneven   answers as long as those that GSM8K gives: pools of 16 rows that are filled
           up, and fixed batches of 16, which go on until their longest answer is there
  guesses  a text that is to be copied, with and without prompt lookup, one at a time
"""

import argparse
import itertools
import statistics
import tempfile
import time
from typing import Any

ROWS = 16


def turns(contestants: dict, rounds: int):
  """Times contestants in turns, and prints a line for each.

  Args:
    contestants: name -> function that returns the number of new tokens.
    rounds: number of times.
  """
  first: dict[str, float] = {}
  for name, call in contestants.items():
    clock = time.perf_counter()
    call()
    first[name] = time.perf_counter() - clock
  speeds: dict[str, list[float]] = {name: [] for name in contestants}
  for _ in range(rounds):
    for name, call in contestants.items():
      clock = time.perf_counter()
      count = call()
      speeds[name].append(count / (time.perf_counter() - clock))
  reference = next(iter(speeds.values()))
  print(f"{'':<34}{'tokens/s':>9}{'ratio':>7}{'first call, s':>15}")
  for name, found in speeds.items():
    ratio = statistics.median(a / b for a, b in zip(found, reference, strict=True))
    print(f"{name:<34}{statistics.median(found):>9.0f}{ratio:>7.2f}{first[name]:>15.1f}",
          flush=True)  # fmt: skip


def copies(args):
  """Each prompt read once, or once for every copy."""
  import numpy as np

  import jaxpeft
  from jaxpeft.generation import engine

  model = jaxpeft.load("embedded", dtype="float32")
  net, params = model.transformer, model.params
  rng = np.random.default_rng(0)
  prompts = rng.integers(3, 400, (16, 48)).tolist()
  end = [engine.End(frozenset())]

  def shared():
    jobs = [engine.Job(p, 8, [i, 0], 1.0) for p in prompts for i in range(16)]
    return sum(len(x.tokens) for x in engine.draw(net, params, jobs, end))

  def unshared():
    # The first token differs, so that no two prompts are equal.
    jobs = [engine.Job([i, *p[1:]], 8, [i, 0], 1.0) for p in prompts for i in range(16)]
    return sum(len(x.tokens) for x in engine.draw(net, params, jobs, end))

  turns({"each copy read": unshared, "each prompt read once": shared}, args.rounds)


def _smollm2():
  import jaxpeft
  from jaxpeft import config_file

  c = config_file.load("configs/smollm2_lora.py", [])
  return jaxpeft.load(c.model.source, dtype="float32"), c


def uneven(args):
  """Pools that are filled up, fixed batches, and transformers."""
  import numpy as np

  import jaxpeft
  from jaxpeft.data import sources
  from jaxpeft.generation import decode, engine

  model, c = _smollm2()
  net, params, words = model.transformer, model.params, model.tokenizer
  rows = list(itertools.islice(sources.read(c.data.eval), args.prompts))
  asked = [[dict(role="user", content=row["question"])] for row in rows]
  prompts = [words.chat(messages, generation_prompt=True)[0] for messages in asked]
  new = [len(words.encode(row["answer"])) for row in rows]
  order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
  fixed_batches = [order[at : at + ROWS] for at in range(0, len(order), ROWS)]

  def filled():
    jobs = [engine.Job(p, n, [0, 0]) for p, n in zip(prompts, new, strict=True)]
    out = engine.draw(net, params, jobs, [engine.End(frozenset())], batch_size=ROWS)
    return sum(len(x.tokens) for x in out)

  def fixed():
    for some in fixed_batches:
      most = max(new[i] for i in some)
      decode.generate(net, params, [prompts[i] for i in some], most, (), ROWS)
    return sum(new)

  contestants = {"fixed batches of 16": fixed, "a pool of 16 rows": filled}
  with tempfile.TemporaryDirectory() as folder:
    jaxpeft.save_hf(model, folder)
    import torch
    import transformers

    peer: Any = transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=torch.float32
    ).eval()

  def theirs():
    for batch in fixed_batches:
      some = [prompts[i] for i in batch]
      size, most = max(map(len, some)), max(new[i] for i in batch)
      ids = torch.tensor([[0] * (size - len(p)) + p for p in some])
      mask = torch.tensor([[0] * (size - len(p)) + [1] * len(p) for p in some])
      with torch.inference_mode():
        peer.generate(
          input_ids=ids, attention_mask=mask, min_new_tokens=most, max_new_tokens=most,
          do_sample=False, pad_token_id=0,
        )  # fmt: skip
    return sum(new)

  contestants["transformers, batches of 16"] = theirs
  lengths = np.array([len(p) for p in prompts])
  print(
    f"{len(prompts)} prompts of {lengths.min()} to {lengths.max()} tokens, answers of "
    f"{min(new)} to {max(new)}, {np.mean(new):.0f} on average"
  )
  turns(contestants, args.rounds)


def guesses(args):
  """One answer at a time, with and without prompt lookup."""
  from jaxpeft.data import sources
  from jaxpeft.generation import engine

  model, c = _smollm2()
  words = model.tokenizer
  rows = list(itertools.islice(sources.read(c.data.eval), 4))
  prompts = []
  for row in rows:
    text = f"Repeat this text word by word:\n\n{row['question']}"
    messages = [dict(role="user", content=text)]
    prompts.append(words.chat(messages, generation_prompt=True)[0])
  end = [engine.End(frozenset(words.eos_ids))]

  def answering(drafts):
    def call():
      count = 0
      for p in prompts:
        (got,) = engine.draw(
          model.transformer, model.params, [engine.Job(p, 96, [0, 0])], end,
          drafts=drafts,
        )  # fmt: skip
        count += len(got.tokens)
      return count

    return call

  turns({f"{n} tokens guessed": answering(n) for n in (0, 2, 4)}, args.rounds)


def main():
  """Runs one part."""
  form = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
  parser.add_argument("part", choices=("copies", "uneven", "guesses"))
  parser.add_argument("--prompts", type=int, default=64, help="of `uneven`")
  parser.add_argument("--rounds", type=int, default=2)
  args = parser.parse_args()
  {"copies": copies, "uneven": uneven, "guesses": guesses}[args.part](args)


if __name__ == "__main__":
  main()
