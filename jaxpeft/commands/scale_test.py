"""Measures accuracy against output tokens of every strategy: a table and a plot."""

from typing import Any


def add(parser):
  """Declares the flags."""
  which = parser.add_mutually_exclusive_group(required=True)
  which.add_argument("--ckpt", help="directory of a finished run")
  which.add_argument("--model", help="directory, .gguf file, hub id, or embedded")
  which.add_argument("--server", help="address of a server with OpenAI's protocol")
  parser.add_argument("--served_model", "--served-model", help="its name there")
  parser.add_argument("--task", help="default: the run's, or gsm8k")
  parser.add_argument("--data", help="problems; default: the run's data.eval")
  parser.add_argument("--train", help="rows for --shots; default: the run's data.train")
  parser.add_argument("--limit", type=int, help="problems; 0 is all")
  parser.add_argument("--answer", help="rule that counts; default: the run's")
  parser.add_argument("--shots", type=int, help="solved rows in a prompt")
  parser.add_argument("--m", type=int, default=8, help="most chains of SETS")
  parser.add_argument("--n", type=int, default=6, help="most rounds of a chain")
  parser.add_argument(
    "--samples", type=int, help="most samples of vote and best-of-N; default 4 m"
  )
  parser.add_argument("--ablations", action="store_true", help="SETS without a part")
  parser.add_argument(
    "--reward", help="run of a reward model: adds best-of-N by reward, weighted vote"
  )
  parser.add_argument(
    "--temperatures", help="of sample, verify and correct; default 0.7,0.7,0.7"
  )
  parser.add_argument("--max_new_tokens", "--max-new-tokens", type=int)
  parser.add_argument("--batch_size", "--batch-size", type=int, default=0)
  parser.add_argument("--seed", type=int, help="of the draws; default: the run's")
  parser.add_argument(
    "--out", help="directory to write; default: scale_test in the run's, or in runs/"
  )


def run(args):
  """Asks what is missing; prints the table; writes table.txt, result.json, plot.png."""
  import json
  import pathlib

  from jaxpeft import console, experiment
  from jaxpeft.evaluation import judges, problems, shots, tasks
  from jaxpeft.evaluation.curves import picture, scale
  from jaxpeft.evaluation.strategies import options, recorded, report
  from jaxpeft.generation import remote
  from jaxpeft.parallel import distributed, sharding
  from jaxpeft.training import workdir

  config = configured(args)
  asked, task = _problems(config)
  sizes = scale.Scale(
    args.m, args.n, max(args.m, args.samples or 4 * args.m), args.ablations
  )
  if args.reward:
    other = workdir.read_config(args.reward)
    experiment.adapter_folder(args.reward)  # it may be unfinished
  own = options(config.eval)
  rule = tasks.rule(task, config.eval.answer)
  shown = shots.of_run(config, task, asked)
  given = report.problems(task, asked, shown)
  folder = pathlib.Path(args.out or pathlib.Path(args.ckpt or "runs") / "scale_test")
  if args.server:
    ask = remote.RemoteAsk(
      args.server, args.served_model, config.eval.max_new_tokens, seed=config.seed,
      label="asking", logprobs="logprob" in own.by,
    )  # fmt: skip
    model: Any = dict(server=args.server, served_model=args.served_model)
  else:
    experiment.enter_mesh(sharding.mesh())
    console.note(f"reading {args.ckpt or args.model} ...")
    run = args.ckpt
    model = experiment.load_run(run, config) if run else experiment.read_base(config)
    limit = model.config.max_positions
    problems.check_positions(config, task, asked, model.tokenizer, limit, shown)
    given = given._replace(fits=report.fits(config, model))
    ask = experiment.ask(config, model)
  if args.reward:
    judge = judges.reward_of(other, experiment.load_run(args.reward, other))
    own = own._replace(reward=judge)
  about = recorded.about(config, model)
  folder.mkdir(parents=True, exist_ok=True)
  kept = recorded.Recorded(ask, folder / "chains.jsonl", about)
  result = scale.run(given, kept, sizes, own._replace(rule=rule))
  result |= dict(task=config.eval.task, data=config.data.eval, seed=config.seed)
  text = scale.text(result)
  console.say(text)
  if distributed.is_main():
    (folder / "table.txt").write_text(text + "\n")
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    title = f"{config.eval.task}, {len(asked)} problems of {config.data.eval}"
    picture.draw(result, folder / "plot.png", title)
  console.say(f"\n{folder}: table.txt, result.json, plot.png, chains.jsonl")


def configured(args):
  """The config of the run, or of the model, with the flags' values in it.

  Raises:
    InputError: a flag is out of its range.
  """
  from jaxpeft import config as configs
  from jaxpeft.errors import InputError
  from jaxpeft.evaluation import strategies
  from jaxpeft.training import workdir

  config: Any
  if args.ckpt:
    from jaxpeft import experiment

    experiment.adapter_folder(args.ckpt)
    config = workdir.read_config(args.ckpt).unlock()
  else:
    config = configs.base().unlock()
    config.model.source = args.model or config.model.source
  if bool(args.server) != bool(args.served_model):
    raise InputError("--server=URL and --served_model=NAME need each other")
  for key in ("task", "limit", "answer", "shots", "max_new_tokens", "batch_size"):
    if getattr(args, key) is not None:
      config.eval[key] = getattr(args, key)
  if args.task and args.answer is None:
    config.eval.answer = "strict"
  config.data.eval = args.data or config.data.eval
  config.data.train = args.train or config.data.train
  config.seed = config.seed if args.seed is None else args.seed
  if args.temperatures:
    words = args.temperatures.split(",")
    config.eval.temperatures = strategies.temperatures(words)
  for name, value, least in (
    ("m", args.m, 1), ("n", args.n, 0), ("samples", args.samples, 1),
    ("limit", args.limit, 0), ("shots", args.shots, 0),
    ("max_new_tokens", args.max_new_tokens, 1), ("batch_size", args.batch_size, 0),
    ("seed", args.seed, 0),
  ):  # fmt: skip
    if value is not None and not least <= value < 2**31:
      raise InputError(f"--{name}={value} is not from {least} to {2**31 - 1}")
  for name, value in (("m", args.m), ("n", args.n), ("samples", args.samples)):
    if value is not None and value > _MOST:
      raise InputError(f"--{name}={value} is above {_MOST}")
  return config


def _problems(config):
  """(the rows that are asked, their task)."""
  from jaxpeft import run_data
  from jaxpeft.errors import InputError
  from jaxpeft.evaluation import problems

  if not config.data.eval:
    raise InputError("there is no data.eval; give --data=FILE.jsonl")
  if not config.eval.task:
    raise InputError("the run has no eval.task; give --task, e.g. --task=gsm8k")
  rows = run_data.held_out_rows(config)
  task = problems.task_of(config, rows)
  if task is None:
    raise InputError(f"data.eval {config.data.eval} has no rows")
  return rows[: config.eval.limit or None], task


_MOST = 1000
