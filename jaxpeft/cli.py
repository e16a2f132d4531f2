"""What the commands share: flags, help, one clear line for bad input, exit status 2."""

import contextlib
import sys
import threading

from absl import app, flags

from jaxpeft import config, config_file
from jaxpeft.commands import COMMANDS
from jaxpeft.errors import InputError, shortage

_EXAMPLES = """examples:
  python train.py --config=configs/svft_banded.py
  python train.py --config=configs/lora.py --workdir=runs/mine --config.optim.lr=3e-3 \\
      --config.model.source=/path/or/hub-id --config.data.train=train.jsonl \\
      --config.data.eval=test.jsonl --config.eval.task=
  python eval.py --ckpt=runs/svft_banded --out=answers.json

more commands (python -m jaxpeft COMMAND --help):
"""


@contextlib.contextmanager
def one_clear_line():
  """Turns InputError, and what the system refuses, into one line and exit status 2.

  If there are several processes, any exception ends this one at once; see
  `distributed.end`.
  """
  try:
    yield
  except BaseException as e:
    distributed = sys.modules.get("jaxpeft.parallel.distributed")
    if distributed:  # otherwise this process has joined no others
      distributed.end(e)
    known = isinstance(e, InputError | OSError)
    line = None if isinstance(e, InputError | SystemExit) else shortage(e)
    if known or line:
      print(f"error: {line or e}", file=sys.stderr)
      if line:  # threads and exit handlers would report the same again
        sys.unraisablehook = threading.excepthook = lambda _: None
      sys.exit(2)
    if isinstance(e, KeyboardInterrupt):
      print("interrupted; run the same command to go on", file=sys.stderr)
      sys.exit(130)
    raise


def parse(argv: list[str]):
  """(flags, config, its path) of a command line, see `config_file.command_line`.

  Raises:
    InputError: an unknown flag, a value of the wrong type, or a stray word.
  """
  line = config_file.command_line(argv)
  app.define_help_flags()
  try:
    rest = flags.FLAGS(line.rest)
  except flags.Error as e:
    raise InputError(f"command line: {str(e).splitlines()[0]}") from e
  if len(rest) > 1:
    raise InputError(f"command line: unexpected {rest[1]!r}; options start with --")
  return flags.FLAGS, line.config, line.path


def help_first(argv: list[str], about: str | None) -> list[str]:
  """`argv`, unless it asks for help: then prints all flags and options, and exits."""
  if not {"-h", "--help", "-help", "--helpfull"} & set(argv[1:]):
    return argv
  print(f"{(about or '').strip()}\n\nflags:")
  if "train.py" in argv[0]:
    print(f"  --{'config':<18}A config file, e.g. configs/lora.py.")
  skipped = ("absl", "tensorflow", "ml_collections")
  for module, found in sorted(flags.FLAGS.flags_by_module_dict().items()):
    if not module.startswith(skipped):
      for flag in found:
        default = "" if flag.default is None else f" (default {flag.default})"
        print(f"  --{flag.name:<18}{flag.help}{default}")
  print(
    "\noptions of a run (--config.KEY=VALUE; a config file is a diff against these):"
  )
  for key, default, comment in config.options():
    value = "" if default is None else f"--config.{key}={default}"
    line = f"  {value:<42} # {comment}" if value else f"\n  {key}: {comment}"
    print(line)
  print(f"\n{_EXAMPLES}", end="")
  print("\n".join(f"  {name:<9} {about}" for name, about in COMMANDS.items()))
  sys.exit(0)


def process_flags():
  """Declares --coordinator, --num_processes and --process_id, for `join`."""
  flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, if there are several."
  )
  flags.DEFINE_integer("num_processes", None, "How many; 1 also ignores a cluster.")
  flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")


def join(parsed, config):
  """Joins the other processes of this run, if there are any; compiles from the cache.

  Args:
    parsed: the parsed flags that `process_flags` declares.
    config: config of the run, for its `processes` section.
  Raises:
    InputError: if the flags, or the environment, do not say enough.
  """
  from jaxpeft.caches import compiled
  from jaxpeft.parallel import distributed  # imports JAX: a typing error need not wait

  given = parsed.coordinator, parsed.num_processes, parsed.process_id
  distributed.initialize(*given, **config.processes)
  compiled.enable()  # before anything is compiled
