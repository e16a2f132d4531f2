"""Trains several configs with an equal tuning budget; writes a table and a plot."""

OVERRIDES = True


def add(parser):
  """Declares the flags."""
  parser.add_argument(
    "--configs", required=True, help="files, or FILE:ARGUMENT, with commas between them"
  )
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument(
    "--times", default="0.3,1,3", help="grid of learning rates, times each config's own"
  )
  parser.add_argument(
    "--shots", default="", help="rows of the base with shots in its prompts, e.g. 0,5"
  )
  parser.add_argument(
    "--out", default="runs/compare", help="directory of runs and result"
  )


def run(args):
  """Trains what is missing, and prints the table."""
  from jaxpeft.errors import InputError
  from jaxpeft.sweeps import compare as comparison

  if any(not word.startswith("--config.") for word in args.rest):
    raise InputError(f"only --config.KEY=VALUE may follow, not {args.rest}")
  configs = [path for path in args.configs.split(",") if path]
  try:
    times = [float(x) for x in args.times.split(",")]
  except ValueError as e:
    raise InputError(f"--times={args.times} is no list of numbers") from e
  try:
    shots = tuple(int(x) for x in args.shots.split(",") if x)
  except ValueError as e:
    raise InputError(f"--shots={args.shots} is no list of whole numbers") from e
  print(comparison.compare(configs, args.seeds, times, args.out, args.rest, shots))
  print(f"\n{args.out}: table.md, pareto.png, runs.jsonl")
