"""Talks with a model or a finished run in a terminal, or line by line from a pipe."""


def add(parser):
  """Declares the flags."""
  which = parser.add_mutually_exclusive_group(required=True)
  which.add_argument("--ckpt", help="directory of a finished run")
  which.add_argument("--model", help="directory, .gguf file, hub id, or embedded")
  parser.add_argument(
    "--adapter",
    action="append",
    default=[],
    metavar="NAME=DIR",
    help="for --model: an adapter, or the directory of a run; may be repeated",
  )
  parser.add_argument(
    "--form",
    choices=("chat", "question/answer", "alpaca", "plain"),
    help="of the prompts; default: the run's own, or the chat template",
  )
  parser.add_argument("--system", default="", help="system prompt")
  parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
  parser.add_argument("--top_k", "--top-k", type=int, default=0, help="0 is off")
  parser.add_argument("--top_p", "--top-p", type=float, default=1.0, help="1 is off")
  parser.add_argument("--max_new_tokens", "--max-new-tokens", type=int, default=512)
  parser.add_argument("--seed", type=int, default=0, help="of the draws")
  parser.add_argument(
    "--dtype",
    choices=("float32", "bfloat16"),
    help="for --model; default float32 on a CPU, otherwise bfloat16",
  )
  parser.add_argument("--quantize", choices=("nf4",), help="for --model: 4-bit weights")


def run(args):
  """Reads the model and answers until the input ends."""
  import jax

  from jaxpeft import console, experiment
  from jaxpeft.chat import conversation, forms, terminal, voices
  from jaxpeft.errors import InputError
  from jaxpeft.generation.sampling import Sampling
  from jaxpeft.parallel import sharding
  from jaxpeft.training import workdir

  sampling = Sampling(args.temperature, args.top_k, args.top_p)
  if not 0 <= args.seed < 2**31:
    raise InputError(f"--seed={args.seed} is not in [0, 2**31)")
  if args.ckpt and (args.adapter or args.dtype or args.quantize):
    raise InputError(
      "--adapter, --dtype and --quantize are for --model; a run has its own"
    )
  experiment.enter_mesh(sharding.mesh())
  if args.ckpt:
    config = workdir.read_config(args.ckpt)
    experiment.adapter_folder(args.ckpt)
    console.note(f"reading {args.ckpt} and its base {config.model.source} ...")
    found = voices.of_run(args.ckpt, config, sampling)
    form, why = forms.of_run(config, found.model.tokenizer)
  else:
    dtype = args.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    console.note(f"reading {args.model} ...")
    found = voices.of_model(args.model, dtype, args.quantize, args.adapter, sampling)
    form = forms.of_model(found.model.tokenizer)
    why = f"the tokenizer has {'a' if form == 'chat' else 'no'} chat template"
  if args.form:
    form, why = args.form, "--form"
  talk = conversation.Conversation(
    found, form, args.system, args.max_new_tokens, args.seed
  )
  console.note(f"prompts: {forms.FORMS[form]} ({why})")
  if len(found.names) > 1:
    console.note(f"answers by {found.used}; /adapter shows the others")
  terminal.run(talk)
