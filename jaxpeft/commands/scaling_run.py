"""The action `run` of `scaling`: a study that is made here."""


def study_flags(parser):
  """Declares the flags of `run`."""
  parser.add_argument(
    "--config", required=True, help="file with a section `scaling`, or FILE:PRESET"
  )
  parser.add_argument(
    "--out", help="directory of the study; default: runs/NAME of the config"
  )


def study(args):
  """Trains what is missing of a study, fits what it gives, and prints the fits."""
  from jaxpeft import config_file
  from jaxpeft.caches import compiled
  from jaxpeft.errors import InputError

  config = config_file.load(args.config, args.rest)
  out = args.out or config_file.places(args.config)[0]
  compiled.enable()
  if config.scaling.sizes and config.scaling.ranks:
    raise InputError(
      "scaling.sizes and scaling.ranks are two studies, of pretraining and of "
      "fine-tuning; leave one of them empty"
    )
  try:
    _study(config, out)
  except InputError as e:
    raise InputError(str(e).replace("--workdir", "--out")) from e


def _study(config, out: str):
  import pathlib

  from jaxpeft import console
  from jaxpeft.sweeps.study import finetune, fits, pretrain

  if config.scaling.ranks:
    console.say(finetune.run(config, out))
    console.say(f"\n{out}: points.csv, points.jsonl, law.json, finetuning.png")
    return
  result = pretrain.run(config, out)
  console.say(f"{fits.write(pathlib.Path(out), result.entropy)}\n")
  console.say(pretrain.text(result))
