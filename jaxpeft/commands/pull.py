"""Fetches an adapter or a model from the hub, and says what it is and what to do."""


def add(parser):
  """Declares the flags."""
  parser.add_argument(
    "--from", required=True, dest="source", help="org/name, or org/name@revision"
  )
  parser.add_argument("--out", required=True, help="directory to write")


def run(args):
  """Fetches it."""
  from jaxpeft import console
  from jaxpeft.hub import pull

  console.say(pull.pull(args.source, args.out))
