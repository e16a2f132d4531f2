"""What the commands share: flags, one clear line for bad input, exit status 2."""

import contextlib
import sys

from absl import flags

from jaxpeft.errors import InputError


@contextlib.contextmanager
def one_clear_line():
  """Turns InputError, and what the system refuses, into a line and exit status 2.

  With several processes, whatever is raised ends this one at once: `distributed.end`.
  """
  try:
    yield
  except BaseException as e:
    distributed = sys.modules.get("jaxpeft.parallel.distributed")
    if distributed:  # otherwise this process has joined no others
      distributed.end(e)
    if isinstance(e, InputError | OSError):
      print(f"error: {e}", file=sys.stderr)
      sys.exit(2)
    if isinstance(e, KeyboardInterrupt):
      print("interrupted; run the same command to go on", file=sys.stderr)
      sys.exit(130)
    raise


def process_flags():
  """Declares --coordinator, --num_processes and --process_id, for `join`."""
  flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, if there are more.")
  flags.DEFINE_integer("num_processes", None, "How many; 1 also ignores a cluster.")
  flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0.")


def join(parsed, config):
  """Joins the other processes of this run, if there are any.

  Args:
    parsed: the flags, of `process_flags`.
    config: of the run, for its `processes`.
  Raises:
    InputError: if the flags, or the environment, do not say enough.
  """
  from jaxpeft.parallel import distributed  # imports JAX: a typing error need not wait

  given = parsed.coordinator, parsed.num_processes, parsed.process_id
  distributed.initialize(*given, **config.processes)
