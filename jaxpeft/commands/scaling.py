"""Scaling laws: what a budget of FLOPs buys."""

# action -> help; each has a function NAME_flags(parser) and a function NAME(args) here
ACTIONS = {
  "plan": "sizes, loss and hours of devices for a budget of FLOPs under a law",
}


def add(parser):
  """Declares the actions and their flags."""
  known = parser.add_subparsers(required=True, dest="action", metavar="ACTION")
  for name, about in ACTIONS.items():
    globals()[f"{name}_flags"](known.add_parser(name, help=about, description=about))


def run(args):
  """Does one action."""
  globals()[args.action](args)


def plan_flags(parser):
  """Declares the flags of `plan`."""
  parser.add_argument("--flops", required=True, help="a budget of training FLOPs")


def plan(args):
  """Prints what a budget buys."""
  from jaxpeft.errors import InputError
  from jaxpeft.scaling import laws

  try:
    c = float(args.flops)
  except ValueError as e:
    raise InputError(f"--flops={args.flops} is no number") from e
  n, d = laws.Parametric(482.01, 2085.43, 1.8172, 0.3478, 0.3658).optimum(c)
  print(f"N {n:.3g}, D {d:.3g}")
