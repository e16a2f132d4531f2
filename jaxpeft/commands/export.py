"""Writes a run's model or adapter for others, and checks that it gives the same."""


def add(parser):
  """Declares the flags."""
  parser.add_argument("--ckpt", required=True, help="a run's directory")
  parser.add_argument("--format", choices=("hf", "peft", "gguf"), default="hf")
  parser.add_argument(
    "--out", required=True, help="directory to write; gguf: the file NAME.gguf"
  )
  quality(parser)


def quality(parser):
  """Declares the flags that every export has."""
  parser.add_argument(
    "--dtype",
    choices=("float32", "bfloat16", "float16", "q8_0"),
    help="hf, gguf: of the weights; the last two: gguf only",
  )
  parser.add_argument(
    "--rank", type=int, help="peft: of the nearest LoRA, where needed"
  )
  parser.add_argument(
    "--tolerance", type=float, help="largest difference of logits; see the message"
  )


def run(args):
  """Exports the run."""
  from jaxpeft import console, experiment
  from jaxpeft.export import verify
  from jaxpeft.parallel import distributed, sharding
  from jaxpeft.training import workdir as workdirs

  distributed.initialize(**workdirs.read_config(args.ckpt).processes)
  experiment.enter_mesh(sharding.mesh())
  with console.waiting(f"exporting {args.ckpt}"):
    report = verify.export_run(
      args.ckpt, args.format, args.out, args.dtype, args.rank, args.tolerance
    )
  console.say(f"wrote {args.out}: {report}")
