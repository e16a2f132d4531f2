"""The commands of `python -m jaxpeft`, one file each, imported when they are called.

A command is a module with `add(parser)`, which declares its flags, and `run(args)`. If
it has OVERRIDES, --config.KEY=VALUE may follow; `args.rest` holds these words. A file
here only reads flags and prints; what a command does is in the rooms below.
"""

# name -> help; the order is that of a run's life
COMMANDS = {
  "doctor": "print backend, devices, versions, caches and missing optional parts",
  "list": "list methods, objectives, tasks, configs and model shapes",
  "memory": "compile a run's training step without its weights; print its memory",
  "compare": "train several configs with an equal tuning budget: a table and a plot",
  "scale-test": "accuracy against output tokens of every strategy: a table and a plot",
  "scaling": "scaling laws: plan with them, fit them, measure one of your own",
  "lm_eval": "run lm-evaluation-harness on a run or a model: MMLU, ARC and the rest",
  "launch": "start a program as several processes of this machine; restart them",
  "chat": "talk with a run or a model in a terminal, with adapters by name",
  "push": "export a run, write a model card, and upload both to the hub",
  "pull": "fetch an adapter or a model from the hub, and say what it is",
  "export": "write a run's model or adapter for others; check that it gives the same",
}
