"""Compiles a run's training step without its weights; prints the memory it needs."""

import sys

OVERRIDES = True


def add(parser):
  """Declares the flags."""
  parser.add_argument(
    "--config", required=True, help="a file in configs/, or several: A,B is a table"
  )
  parser.add_argument(
    "--target",
    default="cpu",
    help="cpu, h100, a100-40gb, h100x8, v5e:4x4, ...; none is needed. Several: a "
    "table, with as many rows of the batch for each device as on the first",
  )
  parser.add_argument("--fit", help="find what fits so much memory, e.g. 24GB")
  parser.add_argument(
    "--over", choices=("tokens", "rows"), default="tokens", help="--fit"
  )
  parser.add_argument("--plot", help="FILE.png: bars of the parts")


def run(args):
  """Prints one plan, or a table of several."""
  from jaxpeft import config_file
  from jaxpeft.errors import InputError
  from jaxpeft.planning import search, table, targets

  names = args.target.split(",")
  for name in names:
    targets.prepare(name)
  paths = [path for path in args.config.split(",") if path]
  if not paths:
    raise InputError("--config names no file")
  configs = {
    name: config_file.load(path, args.rest)
    for name, path in zip(config_file.names(paths), paths, strict=True)
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
