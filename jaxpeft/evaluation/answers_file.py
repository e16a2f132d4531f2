"""answers.jsonl of a run: every problem with the answers of base and adapted model."""

import json
import pathlib

from jaxpeft.evaluation.evaluate import Answers
from jaxpeft.parallel import distributed

NAME = "answers.jsonl"


def write(folder: pathlib.Path, base: Answers | None, adapted: Answers | None):
  """Writes what there is, one JSON object for each problem.

  A line has prompt, gold, and for each model that was asked text, correct ({rule:
  bool}) and further results of the task, as base_NAME and adapted_NAME. Without `base`,
  the base's answers stay those of the file that is there, if its problems are the same.

  Args:
    folder: the run's directory.
    base: answers of the base model, in the order of the problems.
    adapted: answers of the adapted model, to the same problems.
  """
  if not distributed.is_main():
    return
  path = folder / NAME
  some = adapted or base
  assert some is not None
  lines = [dict(prompt=r["prompt"], gold=r["gold"]) for r in some.records]
  if base is None:
    there = _read(path)
    same = [(x.get("prompt"), x.get("gold")) for x in there]
    if same == [(x["prompt"], x["gold"]) for x in lines]:
      lines = [{k: v for k, v in x.items() if k[:8] != "adapted_"} for x in there]
  for name, answers in (("base", base), ("adapted", adapted)):
    for line, record in zip(lines, answers.records if answers else lines, strict=True):
      if answers:
        line |= {f"{name}_{k}": x for k, x in record.items() if k not in line}
  tmp = path.with_suffix(".jsonl.tmp")
  tmp.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
  tmp.replace(path)


def _read(path: pathlib.Path) -> list[dict]:
  """The lines of a file; [] if it is missing or damaged."""
  try:
    lines = [json.loads(x) for x in path.read_text(encoding="utf-8").splitlines()]
  except (OSError, ValueError, RecursionError):
    return []
  return lines if all(isinstance(x, dict) for x in lines) else []
