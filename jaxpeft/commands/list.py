"""Lists methods, objectives, tasks, configs and model shapes."""

import dataclasses
import pathlib


def add(_):
  """It has no flags."""


def run(_):
  """Prints the lists."""
  from jaxpeft import adapters, objectives
  from jaxpeft.evaluation import strategies, tasks
  from jaxpeft.transformer.remat import REMAT
  from jaxpeft.transformer.shapes import SHAPES

  def first_line(thing) -> str:
    return (thing.__doc__ or "").strip().split("\n")[0]

  print("methods (config.adapt.NAME.name)")
  for name, method in adapters.METHODS.items():
    fields = ", ".join(f"{f.name}={f.default!r}" for f in dataclasses.fields(method))
    print(f"  {name:<12}{first_line(method)}\n  {'':<12}{fields}")
  print("objectives (config.objective.name)")
  for name in objectives.OBJECTIVES:
    print(f"  {name}")
  print("tasks (config.eval.task)")
  for name, task in tasks.TASKS.items():
    print(f"  {name:<12}{first_line(task)}")
  print("strategies (config.eval.strategy)")
  for name, strategy in strategies.STRATEGIES.items():
    print(f"  {name:<18}{first_line(strategy)}")
  print("rematerialization (config.model.remat): what the backward pass keeps")
  for name, text in REMAT.items():
    print(f"  {name:<12}{text}")
  print("model shapes (config.model.source=init:SHAPE)")
  print("  " + ", ".join(SHAPES))
  folder = pathlib.Path(__file__).parents[2] / "configs"
  if folder.is_dir():
    print("configs (--config=configs/NAME.py)")
    print("  " + ", ".join(sorted(path.stem for path in folder.glob("*.py"))))
