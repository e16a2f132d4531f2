"""Evaluates a run: python eval.py --ckpt=runs/svft_banded

Builds through the same code as train.py, so it gives the accuracy that training gave.
"""

import json
import pathlib
import sys

from absl import flags

from jaxpeft import cli, config_file
from jaxpeft.errors import InputError

flags.DEFINE_string("ckpt", None, "A run's directory, as train.py wrote it.")
flags.DEFINE_string("task", None, "Task; default that of the run.")
flags.DEFINE_string("data", None, "JSONL file; default the run's data.eval.")
flags.DEFINE_integer("limit", None, "Problems; 0 is all; default that of the run.")
flags.DEFINE_float("temperature", None, "0 is greedy; default that of the run.")
flags.DEFINE_integer("max_new_tokens", None, "Default that of the run.")
flags.DEFINE_string("out", None, "Where to write JSON, with every answer.")
flags.DEFINE_integer("tensor", 1, "Of a mesh of all devices; the rest is its fsdp.")
cli.process_flags()


def main(argv):
  """The evaluation."""
  from jaxpeft.training import workdir as workdirs

  parsed = config_file.parse(argv)
  if parsed.ckpt is None:
    raise InputError("which run? Give --ckpt=runs/NAME")
  config = workdirs.read_config(parsed.ckpt).unlock()
  cli.join(parsed, config)  # before JAX has devices
  for key in ("task", "limit", "temperature", "max_new_tokens"):
    if parsed[key].value is not None:
      config.eval[key] = parsed[key].value
  if parsed.limit is not None:
    config.eval.loss_limit = parsed.limit
  config.data.eval = parsed.data or config.data.eval
  if not config.data.eval:
    raise InputError("the run has no data.eval; give --data=FILE.jsonl")
  out = pathlib.Path(parsed.out) if parsed.out else None
  if out and not out.parent.is_dir():
    raise InputError(f"--out={out}: there is no directory {out.parent}")
  if out and out.is_dir():
    raise InputError(f"--out={out} is a directory; name a file")

  from jaxpeft import console, experiment
  from jaxpeft.evaluation import evaluate
  from jaxpeft.generation import decode
  from jaxpeft.parallel import distributed, sharding
  from jaxpeft.training import step as training

  experiment.check_options(config)
  rows = experiment.held_out_rows(config)
  experiment.enter_mesh(sharding.mesh(tensor=parsed.tensor))
  console.note(f"reading {parsed.ckpt} and its base {config.model.source} ...")
  model = experiment.load_run(parsed.ckpt, config)
  held_out, problems, summary = experiment.held_out(config, model.tokenizer, rows)
  console.note(summary)
  e = config.eval
  nats = evaluate.loss(
    training.make_eval(model.transformer),
    model.params,
    held_out,
    config.data.max_tokens,
    config.train.batch_size // config.train.accumulate,
  )
  table = {
    "loss [nats/token]": f"{nats:.4f}",
    "perplexity": f"{2.718281828459045**nats:.3f}",
  }
  report = dict(ckpt=str(parsed.ckpt), data=config.data.eval, loss=nats)
  if e.task:
    got = evaluate.answers(
      model,
      problems,
      e.task,
      batch_size=e.batch_size,
      seed=config.seed,
      max_new_tokens=e.max_new_tokens,
      sampling=decode.Sampling(e.temperature, e.top_k, e.top_p),
    )
    for rule, share in got.accuracy.items():
      low, high = got.interval[rule]
      table[f"accuracy, {rule}"] = f"{share:.1%}  [{low:.1%}, {high:.1%}]"
    report |= dict(
      task=e.task,
      problems=len(problems),
      accuracy=got.accuracy[e.answer],
      accuracy_ci95=got.interval[e.answer],
      by_rule=got.accuracy,
      answers=got.records,
    )
    console.say(f"{e.task} on {len(problems)} problems of {config.data.eval}")
  for name, value in table.items():
    console.say(f"  {name:<20} {value}")
  if out and distributed.is_main():
    tmp = out.with_name(out.name + ".tmp")
    tmp.write_text(json.dumps(report, indent=1) + "\n")
    tmp.replace(out)


if __name__ == "__main__":
  with cli.one_clear_line():
    main(sys.argv)
