"""What the commands share: flags, one clear line for bad input, exit status 2."""

import contextlib
import fcntl
import json
import os
import pathlib
import sys

from absl import app, flags
from ml_collections import config_dict, config_flags

from jaxpeft import config as base_config
from jaxpeft.errors import InputError

_WHERE = ("mesh", "processes")  # sections that may change: the run is the same


@contextlib.contextmanager
def one_clear_line():
  """Turns InputError, and what the system refuses, into a line and exit status 2.

  With several processes, whatever is raised ends this one at once: `distributed.end`.
  """
  try:
    yield
  except BaseException as e:
    if "jaxpeft.distributed" in sys.modules:
      sys.modules["jaxpeft.distributed"].end(e)
    if isinstance(e, InputError | OSError):
      print(f"error: {e}", file=sys.stderr)
      sys.exit(2)
    if isinstance(e, KeyboardInterrupt):
      print("interrupted; run the same command to go on", file=sys.stderr)
      sys.exit(130)
    raise


def config_flag(values=flags.FLAGS, argv=None):
  """Declares --config, a file in configs/ whose keys --config.KEY overrides.

  Args:
    values: where to.
    argv: in which to look for those keys; None is the command line.
  """
  about = "A file of configs/; --config.KEY=VALUE changes a key."
  config_flags.DEFINE_config_file(
    "config", None, about, flag_values=values, sys_argv=argv
  )


def load_config(path: str, changes: list[str]):
  """The config of a file, with `--config.KEY=VALUE` changed; errors as of `parse`."""
  values, argv = flags.FlagValues(), ["", f"--config={path}", *changes]
  config_flag(values, argv)
  return parse(argv, values).config


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
  from jaxpeft import distributed  # JAX, for which a typing error need not wait

  given = parsed.coordinator, parsed.num_processes, parsed.process_id
  distributed.initialize(*given, **config.processes)


def parse(argv: list[str], values=flags.FLAGS):
  """absl's flags from the command line.

  Raises:
    InputError: for an unknown flag or key, or a value of another type.
  """
  if values is flags.FLAGS:
    app.define_help_flags()
  try:
    rest = values(argv)
  except (
    flags.Error,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
    OSError,
    ImportError,
    SyntaxError,
    NameError,
  ) as e:
    # ml_collections wraps the KeyError of an unknown key in an AttributeError.
    key = next((x for x in (e, *e.args) if isinstance(x, KeyError)), None)
    if key is not None:
      known = str(key.args[0]).replace("\n", ". ")
      raise InputError(
        f"command line: the config has no key {known}; an option of an adapter or "
        "optimiser that its config file does not name has to be added there first"
      ) from e
    raise InputError(f"command line: {_first_line(e)}") from e
  if "config" in values:
    try:  # a file that cannot be loaded fails when an attribute is asked for
      getattr(values.config, "is_locked", None)
    except OSError as e:
      name = values["config"].config_filename
      reason = " ".join(str(e.__cause__ or e).split())
      raise InputError(f"cannot load --config={name}: {reason}") from e
  if len(rest) > 1:
    raise InputError(f"command line: unexpected {rest[1]!r}; options start with --")
  return values


def prepare_workdir(path: str, config) -> pathlib.Path:
  """Makes the run's directory and writes config.json, or checks the one there.

  With several processes, all call it: process 0 writes, the others check.

  Raises:
    InputError: in all of them, if it is not writable, holds a run of another config, or
      is not the same directory for all.
  """
  from jaxpeft import distributed

  workdir = pathlib.Path(path)
  text = json.dumps(to_json(config), indent=2) + "\n"
  for turn in (True, False):
    error = ""
    if distributed.is_main() == turn:
      try:
        _write_or_check(workdir, text, write=turn)
      except (InputError, OSError, json.JSONDecodeError) as e:
        known = isinstance(e, InputError)
        error = str(e) if known else f"cannot use --workdir={path}: {e}"
    errors = [text for text in distributed.exchange(error) if text]
    if errors:
      raise InputError(errors[0])
  return workdir


def _lock(workdir):
  """Has the run's directory for this process alone, until it ends.

  Raises:
    InputError: another process has it.
  """
  path = workdir.resolve() / ".lock"
  if path in _locks:
    return
  lock = open(path, "w")
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as e:
    raise InputError(
      f"another process trains in {workdir}; let it end, or use another --workdir"
    ) from e
  except OSError:
    pass  # a file system without locks
  _locks[path] = lock


_locks = {}  # open files: closed, they are locks no more


def _write_or_check(workdir, text, write):
  file = workdir / "config.json"
  if write:
    workdir.mkdir(parents=True, exist_ok=True)
    if not os.access(workdir, os.W_OK):
      raise PermissionError("not writable")
    _lock(workdir)
  if file.exists():
    there, now = json.loads(file.read_text()), json.loads(text)
    known = {key: x for key, x in _filled(there).items() if key in there or key in now}
    changed = _changes(known | {key: now.get(key) for key in _WHERE}, now)
    if changed:
      raise InputError(
        f"{workdir} holds a run of another config ({'; '.join(changed[:4])}); "
        "use another --workdir, or remove that one"
      )
  elif write:
    tmp = file.with_suffix(".tmp")
    tmp.write_text(text)
    tmp.replace(file)
  else:
    raise InputError(
      f"{file} is there for process 0 and not for another: --workdir must be on a file "
      "system that all machines share"
    )


def read_config(workdir) -> config_dict.ConfigDict:
  """The resolved config of a run.

  Raises:
    InputError: if the directory is no run.
  """
  path = pathlib.Path(workdir) / "config.json"
  try:
    values = json.loads(path.read_text())
  except (OSError, ValueError) as e:  # no JSON, or no text
    raise InputError(f"{workdir} is no run: cannot read {path}: {e}") from e
  if not isinstance(values, dict):
    raise InputError(f"{workdir} is no run: {path} holds no JSON object")
  return config_dict.ConfigDict(_filled(values), convert_dict=True).lock()


def _filled(values: dict) -> dict:
  """A saved config, with the defaults of keys and sections that are newer than it."""
  return _over(to_json(base_config.base()), values)


def _over(old, new):
  if not (isinstance(old, dict) and isinstance(new, dict)):
    return new
  return old | {key: _over(old.get(key), x) for key, x in new.items()}


def to_json(config) -> dict:
  """The config as plain values."""
  return json.loads(config.to_json_best_effort())


def _changes(old: dict, new: dict, place: str = "") -> list[str]:
  out = []
  for key in sorted(old.keys() | new.keys()):
    a, b = old.get(key), new.get(key)
    if isinstance(a, dict) and isinstance(b, dict):
      out += _changes(a, b, f"{place}{key}.")
    elif a != b:
      out.append(f"{place}{key}: {a!r} there, {b!r} now")
  return out


def _first_line(error: Exception) -> str:
  return (str(error).strip() or type(error).__name__).split("\n")[0]
