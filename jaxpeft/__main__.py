"""python -m jaxpeft list | doctor | memory | export | compare | launch"""

import argparse
import dataclasses
import importlib.metadata
import os
import pathlib
import platform
import sys

from jaxpeft import cli, config_file
from jaxpeft.errors import InputError

_OPTIONAL = {
  "huggingface_hub": "[hub]: fetch models by hub id",
  "gguf": "[gguf]: GGUF files, in and out",
  "jax-triton": "[gpu]: kernels for 4-bit weights on NVIDIA GPUs",
  "torch": "[dev]: parity tests and peer benchmarks",
  "transformers": "[dev]: parity tests and peer benchmarks",
  "peft": "[dev]: parity tests and peer benchmarks",
}
_CORE = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "numpy",
  "safetensors",
  "tokenizers",
  "ml_collections",
)


def doctor(_):
  """Prints backend, devices, versions, and which optional parts are missing."""
  import jax

  print(
    f"python {platform.python_version()} on {platform.platform()}, "
    f"{os.cpu_count()} CPU cores"
  )
  for name in _CORE:
    print(f"  {name:<18} {importlib.metadata.version(name)}")
  print(f"backend {jax.default_backend()}")
  for device in jax.devices():
    stats = device.memory_stats() or {}
    free = stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)
    memory = f", {free / 2**30:.1f} GiB free for JAX" if stats else ""
    print(f"  {device.device_kind} ({device}){memory}")
  if jax.default_backend() == "cpu":
    print("  no accelerator: for an NVIDIA GPU, pip install -e '.[gpu]'")
  print("optional parts")
  for name, use in _OPTIONAL.items():
    try:
      print(f"  {name:<18} {importlib.metadata.version(name)}")
    except importlib.metadata.PackageNotFoundError:
      print(f"  {name:<18} missing {use}")


def listing(_):
  """Lists methods, objectives, tasks, configs and model shapes."""
  from jaxpeft import adapters, objectives
  from jaxpeft.evaluation import tasks
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
  print("rematerialization (config.model.remat): what the backward pass keeps")
  for name, text in REMAT.items():
    print(f"  {name:<12}{text}")
  print("model shapes (config.model.source=init:SHAPE)")
  print("  " + ", ".join(SHAPES))
  folder = pathlib.Path(__file__).parents[1] / "configs"
  if folder.is_dir():
    print("configs (--config=configs/NAME.py)")
    print("  " + ", ".join(sorted(path.stem for path in folder.glob("*.py"))))


def export(args):
  """Writes a run's model or adapter for others, and checks that it gives the same."""
  from jaxpeft import console, experiment
  from jaxpeft.export import verify
  from jaxpeft.parallel import distributed, sharding
  from jaxpeft.training import workdir as workdirs

  distributed.initialize(**workdirs.read_config(args.ckpt).processes)
  experiment.enter_mesh(sharding.mesh())
  report = verify.export_run(
    args.ckpt, args.format, args.out, args.dtype, args.rank, args.tolerance
  )
  console.say(f"wrote {args.out}: {report}")


def memory(args):
  """Compiles a run's training step without its weights; prints the memory it needs."""
  from jaxpeft.planning import search, table, targets

  names = args.target.split(",")
  for name in names:
    targets.prepare(name)
  configs = {
    pathlib.Path(path).stem: config_file.load(path, args.rest)
    for path in args.config.split(",")
  }
  one = len(configs) == len(names) == 1
  if args.fit and not one:
    raise InputError("--fit is for one config and one target")
  if args.fit:
    budget, config = search.parse_bytes(args.fit), next(iter(configs.values()))
    size, plan = search.largest(config, args.target, budget, args.over)
    print(f"at most {size} {args.over} fit {args.fit}\n{plan}")
    found = {f"{size} {args.over}": plan}
  else:
    found = table.plans(configs, names, lambda text: print(text, file=sys.stderr))
    print(next(iter(found.values())) if one else table.table(found))
  if args.plot:
    table.plot(found, args.plot)
    print(f"plot: {args.plot}")


def compare(args):
  """Trains several configs with an equal tuning budget; writes a table and a plot."""
  from jaxpeft.sweeps import compare as comparison

  if any(not word.startswith("--config.") for word in args.rest):
    raise InputError(f"only --config.KEY=VALUE may follow, not {args.rest}")
  configs = [path for path in args.configs.split(",") if path]
  try:
    times = [float(x) for x in args.times.split(",")]
  except ValueError as e:
    raise InputError(f"--times={args.times} is no list of numbers") from e
  print(comparison.compare(configs, args.seeds, times, args.out, args.rest))
  print(f"\n{args.out}: table.md, pareto.png, runs.jsonl")


def launch(args):
  """Starts a program as several processes of this machine, and restarts them."""
  from jaxpeft.parallel import launch as launcher

  command = args.command[1:] if args.command[:1] == ["--"] else args.command
  status = launcher.launch(command, args.n, args.max_restarts, args.devices_per_process)
  sys.exit(status)


def main():
  """The command line."""
  parser = argparse.ArgumentParser(prog="python -m jaxpeft")
  commands = parser.add_subparsers(required=True)
  commands.add_parser("doctor", help=doctor.__doc__).set_defaults(run=doctor)
  commands.add_parser("list", help=listing.__doc__).set_defaults(run=listing)
  out = commands.add_parser("export", help=export.__doc__)
  out.add_argument("--ckpt", required=True, help="a run's directory")
  out.add_argument("--format", choices=("hf", "peft", "gguf"), default="hf")
  out.add_argument(
    "--out", required=True, help="directory to write; gguf: the file NAME.gguf"
  )
  out.add_argument(
    "--dtype",
    choices=("float32", "bfloat16", "float16", "q8_0"),
    help="hf, gguf: of the weights; the last two: gguf only",
  )
  out.add_argument("--rank", type=int, help="peft: of the nearest LoRA, where needed")
  out.add_argument(
    "--tolerance", type=float, help="largest difference of logits; see the message"
  )
  out.set_defaults(run=export)
  plan = commands.add_parser("memory", help=memory.__doc__)
  plan.add_argument(
    "--config", required=True, help="a file in configs/, or several: A,B is a table"
  )
  plan.add_argument(
    "--target",
    default="cpu",
    help="cpu, h100, a100-40gb, h100x8, v5e:4x4, ...; none is needed. Several: a "
    "table, with as many rows of the batch for each device as on the first",
  )
  plan.add_argument("--fit", help="find what fits so much memory, e.g. 24GB")
  plan.add_argument(
    "--over", choices=("tokens", "rows"), default="tokens", help="--fit"
  )
  plan.add_argument("--plot", help="FILE.png: bars of the parts")
  plan.set_defaults(run=memory)
  many = commands.add_parser("compare", help=compare.__doc__)
  many.add_argument("--configs", required=True, help="files, with commas between them")
  many.add_argument("--seeds", type=int, default=3)
  many.add_argument(
    "--times", default="0.3,1,3", help="grid of learning rates, times each config's own"
  )
  many.add_argument(
    "--out", default="runs/compare", help="directory of runs and result"
  )
  many.set_defaults(run=compare)
  group = commands.add_parser("launch", help=launch.__doc__)
  group.add_argument("-n", type=int, default=1, help="processes")
  group.add_argument(
    "--max-restarts", type=int, default=0, help="of all, after a crash"
  )
  group.add_argument(
    "--devices-per-process", type=int, help="CPU devices for each, and no others"
  )
  group.add_argument("command", nargs=argparse.REMAINDER, help="-- python train.py ...")
  group.set_defaults(run=launch)
  args, rest = parser.parse_known_args()
  args.rest = rest
  if rest and args.run not in (compare, memory):
    parser.error(f"unrecognized arguments: {' '.join(rest)}")
  with cli.one_clear_line():
    args.run(args)


if __name__ == "__main__":
  sys.exit(main())
