"""The actions `fit` and `sensitivity` of `scaling`: fits of tables of losses."""


def fit_flags(parser):
  """Declares the flags of `fit`."""
  data_flags(parser)
  parser.add_argument(
    "--approach", type=int, default=3, help="1 envelope, 2 IsoFLOP, 3 parametric law"
  )
  parser.add_argument(
    "--bootstrap", type=int, help="samples; 0 for none; default 4000, or 1000 for 1, 2"
  )
  parser.add_argument("--level", type=float, default=0.95, help="of the intervals")
  parser.add_argument("--flops", default="", help="budgets to split: 1e21,1e24")
  parser.add_argument("--frontier", default="hull", help="of approach 1; or envelope")
  parser.add_argument("--budgets", default="", help="of approach 2: 6e18,1e19,...")
  parser.add_argument(
    "--within",
    type=float,
    default=6.0,
    help="of approach 2: sizes from best / 6 to 6 x",
  )
  parser.add_argument(
    "--delta", type=float, default=1e-3, help="of approach 3, Huber's"
  )
  parser.add_argument("--starts", type=int, default=128, help="of approach 3's search")
  parser.add_argument(
    "--law", default="parametric", help="of approach 3; or width-depth, shape"
  )
  parser.add_argument(
    "--check", help="a law's name or FILE.json: is it a minimum on these data?"
  )
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--out", help="FILE.json: the law, for `scaling plan --law`")
  parser.add_argument("--result", help="FILE.json: all numbers and warnings")
  parser.add_argument("--plot", help="FILE.png: a picture like the papers'")


def data_flags(parser):
  """Declares the flags that say which points are fitted, and how they are counted."""
  parser.add_argument("--data", required=True, help="FILE.csv or .jsonl of losses")
  parser.add_argument(
    "--columns", default="", help="names: n=PARAMS,d=TOKENS,c=FLOPS,loss=LOSS,run=RUN"
  )
  parser.add_argument(
    "--where", action="append", default=[], help="COLUMN=VALUE: these rows only"
  )
  parser.add_argument(
    "--drop_highest", "--drop-highest", type=int, default=0, help="losses, as outliers"
  )
  parser.add_argument(
    "--no_embeds", "--no-embeds", type=int, choices=(1, 2), nargs="?", const=0,
    help="n without tables of embeddings: 1 or 2; Gemstones' count if no number",
  )  # fmt: skip
  parser.add_argument(
    "--vocabulary", type=int, default=50_304, help="tokens of a table of embeddings"
  )


def fit(args):
  """Prints what an approach finds in a table of losses."""
  import json

  from jaxpeft import console
  from jaxpeft.caches import compiled
  from jaxpeft.commands import scaling_files
  from jaxpeft.errors import InputError
  from jaxpeft.scaling import figures, laws, parametric, report, results, trust
  from jaxpeft.scaling import plan as planning

  scaling_files.check(out=args.out, result=args.result, plot=args.plot)
  compiled.enable()
  points = _points(args, args.approach)
  options = results.Options(
    args.frontier, _several(args.budgets, "--budgets"), args.within, args.delta,
    args.starts, args.law, args.bootstrap, args.level, _several(args.flops, "--flops"),
    args.seed,
  )  # fmt: skip
  checked = planning.named(args.check).law if args.check else None
  if args.check and not isinstance(checked, laws.Parametric):
    raise InputError(f"--check={args.check} is no law of the kind 'parametric'")
  result = results.run(points, args.approach, options)
  console.say(report.text(result, args.level))
  if isinstance(checked, laws.Parametric):
    best = result.source
    if not isinstance(best, parametric.Fit) or best.terms != parametric.PARAMETERS:
      best = parametric.fit(points, args.delta)
    said = trust.early(points, checked, best)
    told = f"warning: {said}" if said else "it is a minimum, within rounding"
    console.say(f"law {args.check}: {told}.")
  if args.out:
    if result.fitted is None:
      raise InputError(f"--out={args.out}: the fit gives no law that can be written")
    scaling_files.write(args.out, json.dumps(laws.to_json(result.fitted)))
  if args.result:
    text = json.dumps(report.as_json(result), indent=1)
    scaling_files.write(args.result, text)
  if args.plot:
    figures.draw(result, points, args.plot)


def sensitivity_flags(parser):
  """Declares the flags of `sensitivity`."""
  data_flags(parser)
  parser.add_argument("--by", help="a column: each of its values is fitted alone")
  parser.add_argument("--approaches", default="1,2,3", help="those that are done")
  parser.add_argument(
    "--flops", default="5.76e23", help="a budget to split; default Chinchilla's"
  )
  parser.add_argument(
    "--gamma", type=float, default=47_491.0,
    help="N = N_E + gamma N_E^(1/3) estimates embeddings; 0 leaves this out",
  )  # fmt: skip
  parser.add_argument("--context", type=int, default=2048, help="for attention's FLOPs")
  parser.add_argument("--starts", type=int, default=64, help="of approach 3's searches")
  parser.add_argument("--out", help="FILE.json: the same numbers")
  parser.add_argument("--plot", help="FILE.png: the spread")


def sensitivity(args):
  """Prints what the same data give under every choice."""
  import dataclasses
  import json
  import pathlib

  from jaxpeft import console
  from jaxpeft.caches import compiled
  from jaxpeft.commands import scaling_files
  from jaxpeft.errors import InputError
  from jaxpeft.scaling import sensitivity as choosing
  from jaxpeft.scaling import spread

  scaling_files.check(out=args.out, plot=args.plot)
  if not 1 <= args.starts <= 100_000:
    raise InputError(f"--starts={args.starts} is not from 1 to 100,000")
  if not 0 <= args.context <= 10**9:
    raise InputError(f"--context={args.context} is not from 0 to 1,000,000,000")
  compiled.enable()
  points = _points(args, 3)
  approaches = tuple(_several(args.approaches, "--approaches"))
  if not approaches or not set(approaches) <= {1, 2, 3}:
    raise InputError(f"--approaches={args.approaches[:60]} are not of 1,2,3")
  if not 0 <= args.gamma < float("inf"):
    raise InputError(f"--gamma={args.gamma} is not a number from 0")
  c = _number(args.flops, "--flops")
  which = tuple(sorted({int(x) for x in approaches}))
  choices = choosing.Choices(
    args.by, which, args.gamma, args.vocabulary, args.context, args.starts
  )
  found = choosing.run(points, c, choices)
  console.say(spread.text(found, c))
  if args.out:
    rows = [dataclasses.asdict(one) for one in found]
    text = json.dumps(dict(flops=c, outcomes=rows), indent=1)
    scaling_files.write(args.out, text)
  if args.plot:
    title = f"{pathlib.Path(args.data).name}: one table, {len(found)} fits"
    spread.draw(found, c, title, args.plot)


def _points(args, approach: int):
  """The points that the flags ask for."""
  from jaxpeft.errors import InputError
  from jaxpeft.scaling import points as tables

  points = tables.read(args.data, args.columns)
  for word in args.where:
    column, equals, value = word.partition("=")
    if not equals:
      raise InputError(f"--where={word} is not COLUMN=VALUE")
    points = points.where(column, value)
  if len(points) < tables.LEAST:
    raise InputError(
      f"--where leaves {len(points)} points; a fit needs at least {tables.LEAST}"
    )
  if not 1 <= args.vocabulary <= 10**9:
    raise InputError(f"--vocabulary={args.vocabulary} is not from 1 to 1,000,000,000")
  if args.no_embeds is not None:
    default = 1 if approach == 3 else 2
    points = points.without_embeddings(args.no_embeds or default, args.vocabulary)
  if not 0 <= args.drop_highest <= len(points) - tables.LEAST:
    raise InputError(
      f"--drop_highest={args.drop_highest} is not from 0 to "
      f"{len(points) - tables.LEAST}: {tables.LEAST} of {len(points)} points must stay"
    )
  return points.without_highest(args.drop_highest)


def _several(text: str, flag: str) -> tuple[float, ...]:
  """Positive numbers, separated by commas."""
  from jaxpeft.errors import InputError

  found = tuple(_number(word, flag) for word in text.split(",") if word.strip())
  if not all(0 < x <= 1e60 for x in found):
    raise InputError(f"{flag}={text[:60]} has a number that is not above 0, up to 1e60")
  return found


def _number(text: str, flag: str) -> float:
  from jaxpeft.errors import InputError

  try:
    return float(text)
  except ValueError as e:
    raise InputError(f"{flag}={text[:60]} is no number, e.g. 1e21") from e
