"""Evaluates a run: python eval.py --ckpt=runs/svft_banded

Uses the same experiment as train.py, so it gives the accuracy that training printed.
"""

import json
import math
import pathlib
import sys

from absl import flags

from jaxpeft import cli
from jaxpeft.errors import InputError

flags.DEFINE_string("ckpt", None, "Directory of a run, as train.py wrote it.")
flags.DEFINE_string("task", None, "See python -m jaxpeft list; '' for the loss.")
flags.DEFINE_string("data", None, "File; default the run's data.eval.")
flags.DEFINE_string("answer", None, "Rule that counts; default the run's eval.answer.")
flags.DEFINE_string("normalize", None, "exact, choice: see eval.normalize.")
flags.DEFINE_string("extract", None, "exact, choice: regex, see eval.extract.")
flags.DEFINE_string("labels", None, "choice: labels with commas, see eval.labels.")
flags.DEFINE_enum("choice", None, ("likelihood", "generation"), "choice: how.")
flags.DEFINE_string("strategy", None, "sets, self_consistency, ...; see test_time.md.")
flags.DEFINE_integer("m", None, "strategy: chains or samples of a problem.")
flags.DEFINE_integer("n", None, "strategy: most rounds of verify and correct.")
flags.DEFINE_string("vote_over", None, "sets: all, or verified_first.")
flags.DEFINE_string("by", None, "best_of_n: verify, choice, mean_logprob, reward, ...")
flags.DEFINE_string("reward", None, "by=reward, weighted_vote: run of a reward model.")
flags.DEFINE_string("prefer", None, "preference: reward, sum, mean or change.")
flags.DEFINE_list("temperatures", None, "strategy: of sample, verify and correct.")
flags.DEFINE_integer("shots", None, "Solved rows in a prompt; default the run's.")
flags.DEFINE_integer("limit", None, "Problems; 0 is all; default the run's eval.limit.")
flags.DEFINE_float("temperature", None, "0 is greedy; default the run's.")
flags.DEFINE_integer("max_new_tokens", None, "Default the run's eval.max_new_tokens.")
flags.DEFINE_integer("batch_size", None, "Most prompts at once; 0: what memory holds.")
flags.DEFINE_string("out", None, "JSON file to write, with every answer.")
flags.DEFINE_integer("tensor", 1, "Size of the mesh's tensor axis; the rest is fsdp.")
cli.process_flags()


def main(argv):
  """Evaluates one run."""
  parsed, config, _ = cli.parse(cli.help_first(argv, __doc__))
  if config is not None:
    raise InputError("eval.py takes the config from --ckpt; leave out --config")
  if parsed.ckpt is None:
    raise InputError("which run? Give --ckpt=runs/NAME")

  # Imported after the flags are parsed, so that a typing error is answered at once.
  from jaxpeft import console, experiment, options, run_data
  from jaxpeft.evaluation import evaluate, judges, problems, shots
  from jaxpeft.evaluation.strategies import report as reports
  from jaxpeft.objectives import from_config
  from jaxpeft.parallel import distributed, sharding
  from jaxpeft.training import workdir

  config = workdir.read_config(parsed.ckpt).unlock()
  cli.join(parsed, config)  # before JAX has devices
  out = _configure(config, parsed)
  options.check(config)
  if config.eval.reward:
    other = workdir.read_config(config.eval.reward)
    experiment.adapter_folder(config.eval.reward)  # it may be unfinished
  rows = run_data.held_out_rows(config)
  experiment.enter_mesh(sharding.mesh(tensor=parsed.tensor))
  console.note(f"reading {parsed.ckpt} and its base {config.model.source} ...")
  model = experiment.load_run(parsed.ckpt, config)
  e, objective = config.eval, from_config(config)
  task, asked = problems.task_of(config, rows), rows[: e.limit or None]
  shown = shots.of_run(config, task, asked)
  if task:
    limit = model.config.max_positions
    problems.check_positions(config, task, asked, model.tokenizer, limit, shown)

  report: dict = dict(ckpt=str(parsed.ckpt), data=config.data.eval)
  table = {}
  if problems.has_loss(objective, rows[: e.loss_limit or None], task):
    held_out, _, summary = run_data.held_out(config, model.tokenizer, rows)
    console.note(summary)
    loss = evaluate.held_out(config, model.transformer, objective, held_out)
    report["loss"] = nats = loss(model.params)
    bare = ", 0-shot" if e.shots else ""
    if config.objective.name == "supervised":
      table[f"loss [nats/token]{bare}"] = f"{nats:.4f}"
      table[f"perplexity{bare}"] = f"{math.exp(nats):.3f}"
    else:
      table["loss of a preference"] = f"{nats:.4f}"
  if task:
    reward = None
    if e.reward:
      console.note(f"reading the reward model of {e.reward} ...")
      reward = judges.reward_of(other, experiment.load_run(e.reward, other))
    ask, folder = experiment.ask(config, model), pathlib.Path(parsed.ckpt)
    given = (asked, task, shown, folder, out, reward)
    found = reports.of_run(config, ask, model, *given)
    got = found.answers
    for rule, share in got.accuracy.items():
      low, high = got.interval[rule]
      table[f"accuracy, {rule}"] = f"{share:.1%}  [{low:.1%}, {high:.1%}]"
    if got.choice:
      low, high = got.choice["macro_f1_ci95"]
      score = got.choice["macro_f1"]
      table[f"macro-F1, {got.rule}"] = f"{score:.3f}  [{low:.3f}, {high:.3f}]"
    for x in got.choice.get("confused", ()):
      got_label = repr(x["found"]) if x["found"] else "no label"
      table[f"{x['gold']!r} taken for"] = f"{got_label}: {x['count']}"
    table |= task.lines(got.more) if got.more else {}
    table |= found.table()
    report |= found.settings(e)
    report |= dict(
      task=e.task,
      problems=len(asked),
      **got.metrics(),
      by_rule=got.accuracy,
      **{name: x for name, x in got.choice.items() if name == "confused"},
      answers=got.records,
    )
    shot = f", {e.shots}-shot" if e.shots else ""
    console.say(f"{e.task} on {len(asked)} problems of {config.data.eval}{shot}")
  for name, value in table.items():
    console.say(f"  {name:<{max(20, *map(len, table))}} {value}")
  if out and distributed.is_main():
    tmp = out.with_name(out.name + ".tmp")
    tmp.write_text(json.dumps(report, indent=1) + "\n")
    tmp.replace(out)


def _configure(config, parsed) -> pathlib.Path | None:
  """Puts the flags' values into the run's config; returns where to write the report."""
  keys = ("task", "limit", "temperature", "max_new_tokens", "batch_size", "answer")
  strategy = ("strategy", "m", "n", "vote_over", "by", "reward", "prefer")
  for key in (*keys, "normalize", "extract", "labels", "choice", "shots", *strategy):
    if parsed[key].value is not None:
      config.eval[key] = parsed[key].value
  if parsed.temperatures:
    from jaxpeft.evaluation import strategies

    config.eval.temperatures = strategies.temperatures(parsed.temperatures)
  if parsed.task is not None and parsed.answer is None:
    config.eval.answer = "strict"  # another task may not have the run's rule
  if parsed.limit is not None:
    config.eval.loss_limit = parsed.limit
  config.data.eval = parsed.data or config.data.eval
  if not config.data.eval:
    from jaxpeft import experiment

    experiment.adapter_folder(parsed.ckpt)  # an unfinished run has other worries
    raise InputError("the run has no data.eval; give --data=FILE.jsonl")
  out = pathlib.Path(parsed.out) if parsed.out else None
  if out and not out.parent.is_dir():
    raise InputError(f"--out={out}: there is no directory {out.parent}")
  if out and out.is_dir():
    raise InputError(f"--out={out} is a directory; name a file")
  return out


if __name__ == "__main__":
  with cli.one_clear_line():
    main(sys.argv)
