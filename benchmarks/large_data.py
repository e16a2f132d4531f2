"""Memory and time of training on a JSONL file that is larger than memory should be.

  python benchmarks/large_data.py --gb=1
  python benchmarks/large_data.py --gb=5 --meta=0.8

Trains the embedded toy for a few steps on a file of a megabyte and on a large one, and
prints the peak memory of both processes and what the large file adds. Then it starts
again, which finds the tokens of the first time. `--meta` is the share of the file that
is in a field that nobody trains on, which makes the file large and its tokens few.

"anonymous" is memory that only swap could free; "mapped" are pages of files, which the
system drops when it needs memory.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
_TEXT = 300  # characters of a prompt and its completion
_BLOCK = 2_000  # rows that are repeated, with numbers of their own


def write(path: pathlib.Path, size: float, meta: float):
  """Writes at least `size` bytes of rows; returns their number."""
  from jaxpeft.data import toy

  rng, other = random.Random(0), "".join(map(chr, range(97, 123)))
  more = int(_TEXT * meta / (1 - meta))
  parts = []
  for row in toy.problems(2, "train", _BLOCK, seed=0):
    value = dict(prompt=row["question"], completion=" " + row["answer"])
    if more:
      value["source"] = "".join(rng.choices(other, k=more))
    parts.append(json.dumps(value)[1:] + "\n")
  count, written = 0, 0
  with open(path, "w") as f:
    while written < size:
      line = f'{{"id": {count}, {parts[count % _BLOCK]}'
      written += f.write(line)
      count += 1
  return count


def train(path: pathlib.Path, folder: pathlib.Path, cache: pathlib.Path) -> dict:
  """Peak memory in bytes and the time in seconds of a short run on a file."""
  command = [
    sys.executable, ROOT / "train.py", f"--config={ROOT}/configs/lora.py",
    f"--workdir={folder}", f"--config.data.train={path}", f"--config.data.eval={path}",
    "--config.eval.task=", "--config.eval.loss_limit=16", "--config.train.steps=5",
    "--config.train.save_every=0",
  ]  # fmt: skip
  environment = os.environ | dict(JAXPEFT_CACHE=str(cache))
  peak, clock = dict.fromkeys(("VmHWM", "RssAnon", "RssFile"), 0), time.monotonic()
  with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as child:
    while child.poll() is None:
      try:
        lines = pathlib.Path(f"/proc/{child.pid}/status").read_text().split("\n")
      except OSError:
        break
      for line in lines:
        name, _, value = line.partition(":")
        if name in peak:
          peak[name] = max(peak[name], int(value.split()[0]) * 1024)
      time.sleep(0.05)
  if child.returncode:
    sys.exit(f"train.py ended with status {child.returncode}")
  return peak | dict(seconds=time.monotonic() - clock)


def main():
  """Generates, trains and prints."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--gb", type=float, default=1.0)
  parser.add_argument("--meta", type=float, default=0.0)
  parser.add_argument("--out", help="directory for everything; default a temporary one")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory(dir=args.out) as name:
    folder = pathlib.Path(name)
    small, large = folder / "small.jsonl", folder / "large.jsonl"
    write(small, 1.1e6, args.meta)
    rows = write(large, args.gb * 1e9, args.meta)
    print(f"{large.stat().st_size / 1e9:.2f} GB, {rows:,} rows", flush=True)
    first = train(small, folder / "run0", folder / "cache")
    found = {"small file": first}
    for i, case in enumerate(("large file", "large file again"), 1):
      found[case] = train(large, folder / f"run{i}", folder / "cache")
    for case, x in found.items():
      more = (x["VmHWM"] - first["VmHWM"]) / 1e6
      print(
        f"{case:<18}{x['seconds']:>7.0f} s  peak {x['VmHWM'] / 1e6:>7,.0f} MB, "
        f"{more:>7,.0f} more than the small file; anonymous "
        f"{x['RssAnon'] / 1e6:>7,.0f} MB, mapped {x['RssFile'] / 1e6:>7,.0f} MB",
        flush=True,
      )


if __name__ == "__main__":
  main()
