"""Splits a file of HH preferences into 2,000 pairs for training and 312 held out.

  python tools/make_hh_pairs.py harmless_base_test.jsonl.gz data/hh_rlhf

The file is harmless-base/test.jsonl.gz of Anthropic/hh-rlhf on the hub [Bai et al.
2022, arXiv:2204.05862; MIT]. **Its texts contain offensive language.** The order is
always the same, and no conversation begins alike on both sides. `train.jsonl` and
`test.jsonl` are written.
"""

import argparse
import gzip
import json
import pathlib
import random

HELD_OUT = 312


def split(rows: list[dict]) -> tuple[list[dict], list[dict]]:
  """(training, held out): whole groups of rows that begin with the same question."""
  groups: dict[str, list[dict]] = {}
  for row in rows:
    first = row["chosen"].split("\n\nAssistant:")[0]
    groups.setdefault(first, []).append(row)
  shuffled = [*groups.values()]
  random.Random(0).shuffle(shuffled)
  train, test = [], []
  for some in shuffled:
    (test if len(test) + len(some) <= HELD_OUT else train).extend(some)
  return train, test


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("source", type=pathlib.Path)
  parser.add_argument("out", type=pathlib.Path)
  args = parser.parse_args()
  with gzip.open(args.source, "rt", encoding="utf-8") as f:
    rows = [json.loads(line) for line in f]
  args.out.mkdir(parents=True, exist_ok=True)
  for name, some in zip(("train", "test"), split(rows), strict=True):
    text = "".join(json.dumps(row) + "\n" for row in some)
    (args.out / f"{name}.jsonl").write_text(text)
    print(f"{name}: {len(some)} pairs")


if __name__ == "__main__":
  main()
