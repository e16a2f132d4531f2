"""Seconds from a command to the end of its first step, cold and warm, by part.

  python benchmarks/start.py [--cases toy,lora] [--model FILE.gguf] [--data train.jsonl]

A cold start has empty caches, a warm one those that the cold one left: compiled
programs, singular value decompositions and tokens. Cases: the toy with banded SVFT; and
SmolLM2-135M-Instruct with LoRA (r=16), SVFT (d=8) and PiSSA (r=16) on one row of 512
tokens. docs/real_model.md says how to get model and data. Nothing is evaluated before
the first step. Each start is one process; run this on an idle machine. From the second
start on, the files are in the system's page cache.

  imports   from the command to the first line of the run, with the data's rows
  read      reading the weights, tokenizing
  adapt     decompositions and other starts of the adapter; the step compiles meanwhile
  compile   what is left of compiling, or of reading the compiled step
  step      the first step
  compiled  programs that were compiled, and those that the cache had
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
CASES = dict(toy="svft_banded", lora="smollm2_lora", svft="smollm2_svft",
             pissa="smollm2_pissa")  # fmt: skip
OPTIONS = ("train.steps=1 train.log_every=1 train.eval_every=0 train.save_every=0 "
           "eval.task= data.eval= log.tracker=none").split()  # fmt: skip
PARTS = ("imports", "read", "adapt", "compile", "step")
# The beginning of the line that a part ends with.
ENDS = ("reading ", "adapting ...", "compiling ...", "step compiled", "step 1/1 ")
# Runs train.py and then prints how many programs were compiled.
COUNT = """
import atexit, runpy, sys
import jax
found = {"hits": 0, "misses": 0}
def listen(name, **_):
  if name.startswith("/jax/compilation_cache/cache_"):
    found[name.rpartition("_")[2]] += 1
jax.monitoring.register_event_listener(listen)
atexit.register(lambda: print("programs", found["misses"], found["hits"],
                              file=sys.stderr))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(case: str, cache: str, options: list[str]) -> tuple[dict, str]:
  """({part: seconds}, "compiled/cached") of one start of a case."""
  with tempfile.TemporaryDirectory() as workdir:
    command = [
      sys.executable, "-u", "-c", COUNT, str(ROOT / "train.py"),
      f"--config={ROOT / 'configs' / CASES[case]}.py", f"--workdir={workdir}/run",
      *(f"--config.{option}" for option in OPTIONS + options),
    ]  # fmt: skip
    env = os.environ | dict(JAXPEFT_CACHE=cache)
    clock, ends, programs, lines = time.perf_counter(), [], "?", []
    with subprocess.Popen(
      command, env=env, cwd=ROOT, text=True, stderr=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
    ) as process:  # fmt: skip
      for line in process.stderr or ():
        lines.append(line)
        if len(ends) < len(ENDS) and line.startswith(ENDS[len(ends)]):
          ends.append(time.perf_counter() - clock)
        if line.startswith("programs "):
          programs = "/".join(line.split()[1:])
  if process.returncode or len(ends) < len(ENDS):
    sys.exit(f"{case} failed:\n{''.join(lines[-20:])}")
  took = [b - a for a, b in zip([0.0, *ends], ends, strict=False)]
  return dict(zip(PARTS, took, strict=True)), programs


def main():
  """Starts every case twice cold and twice warm, and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--cases", default=",".join(CASES))
  parser.add_argument("--model", help="default: the config's model.source")
  parser.add_argument("--data", help="default: the config's data.train")
  parser.add_argument("--starts", type=int, default=2, help="cold ones, and warm ones")
  args = parser.parse_args()
  print(f"{os.cpu_count()} cores; seconds\n\n| case | start | " + " | ".join(PARTS)
        + " | total | compiled/cached |")  # fmt: skip
  print("|---|---|" + "---|" * (len(PARTS) + 2))
  for case in args.cases.split(","):
    own = case != "toy"
    options = [f"model.source={args.model}"] if own and args.model else []
    options += [f"data.train={args.data}"] if own and args.data else []
    for cold in range(args.starts):
      with tempfile.TemporaryDirectory() as cache:
        warm = args.starts if cold == args.starts - 1 else 0
        for name in ("cold", *["warm"] * warm):
          took, programs = start(case, cache, options)
          cells = " | ".join(f"{x:.1f}" for x in took.values())
          total = sum(took.values())
          print(f"| {case} | {name} | {cells} | {total:.1f} | {programs} |", flush=True)


if __name__ == "__main__":
  main()
