"""Compiled memory of a LLaMA2-7B training step, by method, remat and token selection.

  python benchmarks/memory_table.py --target=h100

The setting is bfloat16, one row of 2,048 tokens, Adam on the trained parameters, and
LoRA r=8 on the MLP as in TokenTune's own runs. Nothing runs and no weights exist: the
numbers are the compiler's memory plans. Without --all, only the NF4 rows are compiled.
"""

import sys

from absl import app, flags

from jaxpeft.planning import memory, targets

flags.DEFINE_string(
  "target", "cpu", "Devices to compile for, see jaxpeft/planning/targets.py."
)
flags.DEFINE_integer("tokens", 2048, "Number of tokens in the row.")
flags.DEFINE_bool(
  "all", False, "Also compile the rows with 16-bit weights, and full fine-tuning."
)

# name, method, whether the base is in NF4, fraction of tokens that carry gradient
ROWS = (
  ("full fine-tuning", "Full", False, 1.0),
  ("full, 10 % of tokens", "Full", False, 0.1),
  ("LoRA", "LoRA", False, 1.0),
  ("LoRA, 10 % of tokens", "LoRA", False, 0.1),
  ("QLoRA", "LoRA", True, 1.0),
  ("QLoRA, 10 % of tokens", "LoRA", True, 0.1),
  ("QLoRA, 30 % of tokens", "LoRA", True, 0.3),
)
REMAT = ("none", "layer", "segments")


def configure(method: str, in_4_bits: bool, fraction: float, remat: str, tokens: int):
  """The config of one cell of the table."""
  from jaxpeft import config

  c = config.base()
  c.model.source, c.model.dtype = "init:llama2-7b", "bfloat16"
  c.model.quantize, c.model.remat = "nf4" if in_4_bits else "", remat
  if method == "LoRA":
    c.adapt.main = dict(name="LoRA", match="layers_.*/mlp/.*", rank=8, alpha=16.0)
  else:
    c.adapt.main = dict(name="Full", match=".*")
  c.tokens.fraction, c.data.max_tokens, c.train.batch_size = fraction, tokens, 1
  return c


def main(argv):
  """Prints the table, cell by cell."""
  if len(argv) > 1:
    sys.exit(f"unknown argument {argv[1]}")
  f = flags.FLAGS
  targets.prepare(f.target)
  print(
    f"LLaMA2-7B shape, 1 x {f.tokens}, bfloat16, compiled for {f.target}: GB in all"
  )
  print(f"{'':24}" + "".join(f"{f'remat {r}':>16}" for r in REMAT))
  for name, *how in ROWS:
    if not (f.all or how[1]):
      continue
    print(f"{name:24}", end="", flush=True)
    for remat in REMAT:
      plan = memory.plan(configure(*how, remat, f.tokens), f.target)
      print(f"{plan.total / 1e9:16.2f}", end="", flush=True)
    print()


if __name__ == "__main__":
  app.run(main)
