"""Rows of a comparison for bases, untrained, with shots in their prompts."""

import json
import pathlib
from typing import Any

from jaxpeft import config as options_of
from jaxpeft import config_file, console, experiment, options, run_data
from jaxpeft.errors import InputError
from jaxpeft.evaluation import evaluate, problems, shots
from jaxpeft.parallel import sharding


def plan(configs: list[str], counts: list[int], extra: list[str]) -> dict[str, Any]:
  """{name of a row: config} for each base of the configs and each number of shots.

  Configs with the same model, data and evaluation share their rows.

  Args:
    configs: files as in configs/, or FILE:ARGUMENT.
    counts: numbers of shots.
    extra: further arguments of every config, "--config.KEY=VALUE".
  Raises:
    InputError: shots that the data of a config does not have, before anything is run.
  """
  first: dict[str, tuple[str, str]] = {}
  for path, name in zip(configs, config_file.names(configs), strict=True):
    found = options_of.to_json(config_file.load(path, extra))
    key = json.dumps([found[x] for x in ("model", "data", "eval")], sort_keys=True)
    first.setdefault(key, (path, name))
  out = {}
  for path, name in first.values():
    base = "base" if len(first) == 1 else f"base of {name}"
    for count in sorted(set(counts)):
      config = config_file.load(path, extra).unlock()
      config.eval.shots = count
      options.check(config)
      run_data.held_out_rows(config)
      out[f"{base}, {count}-shot"] = config.lock()
  return out


def rows(plans: dict[str, Any], out: pathlib.Path) -> list[dict]:
  """The rows of a `plan`; those that are finished are read from OUT/shots.jsonl.

  Raises:
    InputError: a prompt with its shots does not fit the model.
  """
  path, known = out / "shots.jsonl", {}
  if path.exists():
    for line in path.read_text().splitlines():
      entry = json.loads(line)
      known[entry["config"]] = entry["row"]
  found, base, source = [], None, None
  for name, config in plans.items():
    key = json.dumps(options_of.to_json(config), sort_keys=True)
    if key not in known:
      console.note(f"compare: {name}")
      if base is None or source != config.model:
        base = None  # two models need not fit into memory
        experiment.enter_mesh(sharding.mesh(**config.mesh))
        base, source = experiment.read_base(config), config.model
      known[key] = _row(name, config, base)
      with path.open("a") as file:
        file.write(json.dumps(dict(config=key, row=known[key])) + "\n")
    found.append(known[key] | dict(name=name))
  return found


def _row(name: str, config, base) -> dict:
  """One row, as `compare` has it: nothing is trained, and nothing has a seed."""
  held = run_data.held_out_rows(config)
  task, asked = problems.task_of(config, held), held[: config.eval.limit or None]
  if task is None:
    raise InputError(f"{name}: eval.task and data.eval must be set")
  shown = shots.of_run(config, task, asked)
  limit = base.config.max_positions
  problems.check_positions(config, task, asked, base.tokenizer, limit, shown)
  ask = experiment.ask(config, base, kept=config.eval.reuse_base)
  rule = config.eval.answer
  got = evaluate.answers(ask, asked, task, rule, shown)
  share, (low, high) = got.accuracy[got.rule], got.interval[got.rule]
  return dict(
    name=name,
    trained=0,
    accuracy=share,
    interval=[low, high],
    problems=len(asked),
    shots=config.eval.shots,
  )
