"""The command line: python -m jaxpeft COMMAND; see `commands` for what there is."""

import argparse
import importlib
import sys

from jaxpeft.commands import COMMANDS


def main():
  """Reads the flags of one command, and runs it."""
  parser = argparse.ArgumentParser(prog="python -m jaxpeft")
  known = parser.add_subparsers(required=True, dest="name", metavar="COMMAND")
  module = None
  if not sys.argv[1:]:
    parser.print_help()
    sys.exit(2)
  for name, about in COMMANDS.items():
    one = known.add_parser(name, help=about, description=about)
    if sys.argv[1:2] == [name]:  # others are not imported, so that help is quick
      module = importlib.import_module(f"jaxpeft.commands.{name.replace('-', '_')}")
      module.add(one)
  args, args.rest = parser.parse_known_args()
  assert module is not None  # otherwise the parser has exited
  if args.rest and not getattr(module, "OVERRIDES", False):
    parser.error(f"unrecognized arguments: {' '.join(args.rest)}")
  from jaxpeft import cli

  with cli.one_clear_line():
    module.run(args)


if __name__ == "__main__":
  sys.exit(main())
