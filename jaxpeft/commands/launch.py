"""Starts a program as several processes of this machine, and restarts them."""

import argparse
import sys


def add(parser):
  """Declares the flags."""
  parser.add_argument("-n", type=int, default=1, help="processes")
  parser.add_argument(
    "--max-restarts", type=int, default=0, help="of all, after a crash"
  )
  parser.add_argument(
    "--devices-per-process", type=int, help="CPU devices for each, and no others"
  )
  parser.add_argument(
    "command", nargs=argparse.REMAINDER, help="-- python train.py ..."
  )


def run(args):
  """Starts the processes and ends with their status."""
  from jaxpeft.parallel import launch as launcher

  command = args.command[1:] if args.command[:1] == ["--"] else args.command
  status = launcher.launch(command, args.n, args.max_restarts, args.devices_per_process)
  sys.exit(status)
