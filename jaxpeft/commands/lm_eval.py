"""Runs lm-evaluation-harness on a run or a model: MMLU, ARC, HellaSwag and the rest.

  python -m jaxpeft lm_eval --model_args ckpt=runs/mine --tasks gsm8k --num_fewshot 5
  python -m jaxpeft lm_eval --model_args model=PATH_OR_HUB_ID --tasks arc_easy,hellaswag

All words go to the harness, which gets the model `jaxpeft`, and batches as large as
memory allows unless --batch_size is given. `python -m jaxpeft lm_eval run -- --help`
lists the harness's flags.
"""

import argparse
import sys

OVERRIDES = True


def add(parser):
  """It has no flags of its own."""
  parser.description = __doc__
  parser.formatter_class = argparse.RawDescriptionHelpFormatter


def run(args):
  """Calls the harness's own command."""
  from jaxpeft import optional
  from jaxpeft.errors import InputError

  main = optional.package("lm_eval.__main__", "lm_eval is not installed", "eval")
  import jaxpeft.harness.lm  # noqa: F401  registers the model

  sys.argv = ["lm_eval", *words(args.rest)]
  try:
    main.cli_evaluate()
  except ValueError as e:
    if str(e).startswith("Tasks not found"):
      raise InputError(f"{e}; lm_eval ls tasks shows all") from e
    raise


def words(given: list[str]) -> list[str]:
  """The words for the harness: with our model, unless another one is named."""
  given = [word for word in given if word != "--"]
  if given[:1] in (["ls"], ["validate"]) or {"-h", "--help"} & set(given):
    return given
  named = {word.split("=")[0] for word in given}
  more = []
  if not {"--model", "-M", "--config", "-C"} & named:
    more += ["--model", "jaxpeft"]
  if not {"--batch_size", "-b", "--config", "-C"} & named:
    more += ["--batch_size", "auto"]
  run = given[:1] == ["run"]
  return ["run", *(given[1:] if run else given), *more]
