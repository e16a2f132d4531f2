"""Scaling laws: what a budget buys, and the FLOPs of a model."""

from jaxpeft.commands.scaling_fit import (
  fit,
  fit_flags,
  sensitivity,
  sensitivity_flags,
)
from jaxpeft.commands.scaling_run import study, study_flags

__all__ = [
  "add",
  "fit",
  "fit_flags",
  "run",
  "sensitivity",
  "sensitivity_flags",
  "study",
  "study_flags",
]

OVERRIDES = True  # for `run`

# action -> help; each has a function NAME_flags(parser) and a function NAME(args) here
ACTIONS = {
  "plan": "sizes, loss and hours of devices for a budget of FLOPs under a law",
  "flops": "FLOPs of training per token, by the counting rules of the literature",
  "run": "pretrain a grid of small models on text of a known entropy, then fit",
  "fit": "exponents and a law from a table of losses, by Chinchilla's approaches",
  "sensitivity": "the same table under every choice: the spread of exponents",
}

_FUNCTIONS = {"run": "study"}  # `run` is what every command has


def add(parser):
  """Declares the actions and their flags."""
  known = parser.add_subparsers(required=True, dest="action", metavar="ACTION")
  for name, about in ACTIONS.items():
    globals()[f"{_FUNCTIONS.get(name, name)}_flags"](
      known.add_parser(name, help=about, description=about)
    )


def run(args):
  """Does one action."""
  if args.rest and args.action != "run":
    from jaxpeft.errors import InputError

    raise InputError(f"unrecognized arguments: {' '.join(args.rest)}")
  globals()[_FUNCTIONS.get(args.action, args.action)](args)


def plan_flags(parser):
  """Declares the flags of `plan`."""
  parser.add_argument(
    "--flops", required=True, help="a budget of training FLOPs, 6 N D; or several: A,B"
  )
  parser.add_argument(
    "--law", default="epoch", help="a law's name, or FILE.json of `scaling fit`"
  )
  parser.add_argument("--n", help="parameters; default: the best for each budget")
  parser.add_argument("--card", default="h100", help="whose hours are counted")
  parser.add_argument("--cards", type=int, default=1, help="how many; adds the days")
  parser.add_argument(
    "--mfu", type=float, default=0.4, help="share of the card's peak; default 0.4"
  )
  parser.add_argument("--level", type=float, default=0.95, help="of the intervals")
  parser.add_argument("--out", help="FILE.json: the same numbers")
  parser.add_argument("--plot", help="FILE.png: the best N and D against FLOPs")


def plan(args):
  """Prints what budgets buy."""
  import dataclasses
  import json

  from jaxpeft import console
  from jaxpeft.commands import scaling_files
  from jaxpeft.errors import InputError
  from jaxpeft.scaling import plan as planning
  from jaxpeft.scaling import plan_picture

  scaling_files.check(out=args.out, plot=args.plot)
  budgets = [_number(x, "--flops") for x in args.flops.split(",") if x]
  if not 1 <= len(budgets) <= 100:
    raise InputError(f"--flops={args.flops[:60]} is not 1 to 100 budgets")
  if not 1 <= args.cards <= 10_000_000:
    raise InputError(f"--cards={args.cards} is not from 1 to 10,000,000")
  n = None if args.n is None else _number(args.n, "--n")
  fitted = planning.named(args.law)
  plans = [
    planning.plan(fitted, c, args.card, args.mfu, n, args.level) for c in budgets
  ]
  console.say(f"law {args.law}: {fitted.source}" if fitted.source else args.law)
  console.say(planning.table(plans, args.card, args.cards))
  if plans[0].n.low is not None or plans[0].loss.low is not None:
    console.say(
      f"\nIn parentheses: {args.level:.0%} intervals of the law's own numbers. They do "
      "not\nsay whether the law holds for other data, tokenizers or much larger models."
    )
  for note in dict.fromkeys(note for p in plans for note in p.notes):
    console.say(f"note: {note}")
  if args.out:
    rows = [dataclasses.asdict(p) for p in plans]
    for row, p in zip(rows, plans, strict=True):
      row |= {k: getattr(p, k)._asdict() for k in ("n", "d", "ratio", "loss")}
    found = dict(law=args.law, source=fitted.source, counts=fitted.counts)
    found |= dict(card=args.card, cards=args.cards, mfu=args.mfu, level=args.level)
    found["plans"] = rows  # type: ignore[assignment]
    scaling_files.write(args.out, json.dumps(found, indent=1))
  if args.plot:
    plan_picture.draw(fitted, plans, args.plot, args.law, args.level)
    console.say(f"plot: {args.plot}")


def flops_flags(parser):
  """Declares the flags of `flops`."""
  parser.add_argument(
    "--model", required=True, help="a shape such as llama2-7b (see `list`), or a model"
  )
  parser.add_argument("--context", type=int, default=2048, help="tokens of a sequence")
  parser.add_argument("--tokens", help="of training; default: FLOPs per token")


def flops(args):
  """Prints the FLOPs of a model by every rule."""
  from jaxpeft import console
  from jaxpeft.errors import InputError
  from jaxpeft.scaling import flops as counting

  if not 1 <= args.context <= 10**9:
    raise InputError(f"--context={args.context} is not from 1 to 1,000,000,000")
  given = "1" if args.tokens is None else args.tokens
  tokens = _number(given, "--tokens")
  if not 0 < tokens <= 1e60:  # NaN, too
    raise InputError(f"--tokens={given[:60]} is not above 0, up to 1e60")
  shape = counting.Shape.of(_config(args.model))
  console.say(
    f"{args.model}: {shape.total:,} weights, {shape.body:,} without embeddings"
  )
  base = counting.per_token(shape, "products", args.context)
  per = "per token" if args.tokens is None else f"for {tokens:.4g} tokens"
  console.say(f"FLOPs of training {per}, {args.context} tokens of context")
  for rule in counting.RULES:
    each = counting.per_token(shape, rule, args.context)
    console.say(f"  {rule:<17} {each * tokens:>10.4g}   {each / base:.3f} of products")


def _config(name: str):
  """The ModelConfig of a shape, or of a directory with a config.json."""
  import json
  import pathlib

  from jaxpeft.checkpoints import hf_config
  from jaxpeft.errors import InputError, unknown
  from jaxpeft.transformer.shapes import SHAPES

  if name in SHAPES:
    return SHAPES[name]
  path = pathlib.Path(name) / "config.json"
  if not path.is_file():
    raise unknown("shape or directory of a model", name, SHAPES)
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except (ValueError, RecursionError) as e:
    raise InputError(f"{path} is no JSON: {e}") from e
  return hf_config.from_hf(found, str(path))


def _number(text: str, flag: str) -> float:
  from jaxpeft.errors import InputError

  try:
    return float(text)
  except ValueError as e:
    raise InputError(f"{flag}={text[:60]} is no number, e.g. 1e21") from e
