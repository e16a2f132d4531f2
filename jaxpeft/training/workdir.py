"""A run's directory: its config.json, its lock, and whether a run may continue.

data.json has the hashes of the data files, which may not change while a run is stopped.
"""

import fcntl
import json
import os
import pathlib
from typing import Any

from ml_collections import config_dict

from jaxpeft import adapters, temporary
from jaxpeft import config as configs
from jaxpeft.errors import InputError
from jaxpeft.parallel import distributed

_WHERE = ("mesh", "processes", "log")  # sections that may change when a run continues
_OF_A_RUN = ("checkpoints", "metrics.jsonl", "adapter", "best")  # after config.json


def prepare(path: str, config, hashes: dict | None = None) -> pathlib.Path:
  """The run's directory, after writing config.json there or checking the existing one.

  If there are several processes, all must call it: process 0 writes, the others check.

  Args:
    path: of the directory.
    config: of the run.
    hashes: config key -> hash of the data files that it names.
  Raises:
    InputError: in every process, if the directory is not writable, holds a run of
      another config or of other data, has lost its config.json, or is not the same
      directory for all processes.
  """
  workdir = pathlib.Path(path)
  text = json.dumps(configs.to_json(config), indent=2) + "\n"
  for turn in (True, False):
    error = ""
    if distributed.is_main() == turn:
      try:
        _write_or_check(workdir, text, write=turn)
        _check_data(workdir, config, hashes or {}, write=turn)
      except (OSError, ValueError, RecursionError) as e:  # also a path with NUL
        known = isinstance(e, InputError)
        error = str(e) if known else f"cannot use --workdir={path}: {e}"
    errors = [text for text in distributed.exchange(error) if text]
    if errors:
      raise InputError(errors[0])
  return workdir


def check(path: str, config, hashes: dict | None = None):
  """Refuses what `prepare` would refuse, as far as it shows without the model.

  Nothing is written, and a process alone may call it.

  Raises:
    InputError: the directory is a file, holds a run of another config or of other
      data, or has lost its config.json.
  """
  workdir = pathlib.Path(path)
  try:
    there = next(x for x in (workdir, *workdir.parents) if x.exists())
    if not there.is_dir():
      raise InputError(f"cannot use --workdir={path}: {there} is a file, no directory")
    _check_left(workdir)
    if (workdir / "config.json").exists():
      now = configs.to_json(config)
      if config.train.epochs is not None:  # the steps follow from the tokens
        now["train"]["steps"] = _read_object(workdir / "config.json")["train"]["steps"]
      _check_config(workdir, now)
      _check_data(workdir, config, hashes or {}, write=False)
  except InputError:
    raise
  except (OSError, ValueError, RecursionError, LookupError) as e:
    raise InputError(f"cannot use --workdir={path}: {e}") from e


def begun(workdir, config):
  """The config with the adapters' options that the run in `workdir` began with.

  They are those of the config, and for options that it does not name the defaults of
  the version of jaxpeft that began the run.
  """
  config = config.copy_and_resolve_references().unlock()
  config.adapt = read_config(workdir).adapt
  return config.lock()


def default(new: str, old: str, config) -> str:
  """`new`; or `old`, where older versions put a run, if it holds this very config."""
  file = pathlib.Path(old) / "config.json"
  if new == old or pathlib.Path(new).exists() or not file.exists():
    return new
  try:
    there, now = configs.filled(_read_object(file)), configs.to_json(config)
  except (OSError, ValueError, RecursionError):
    return new
  return new if _changes(there | {key: now[key] for key in _WHERE}, now) else old


def _lock(workdir):
  """Locks the run's directory for this process, until the process ends.

  Raises:
    InputError: another process holds the lock.
  """
  path = workdir.resolve() / ".lock"
  if path in _locks:
    return
  lock = open(path, "w")
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as e:
    raise InputError(
      f"another process trains in {workdir}; wait for it, or use another --workdir"
    ) from e
  except OSError:
    pass  # the file system has no locks
  _locks[path] = lock


_locks = {}  # path -> open file, kept because closing a file releases its lock


def _write_or_check(workdir, text, write):
  file = workdir / "config.json"
  if write:
    workdir.mkdir(parents=True, exist_ok=True)
    if not os.access(workdir, os.W_OK):
      raise PermissionError("not writable")
    _lock(workdir)
    temporary.tidy(workdir)
  if file.exists():
    _check_config(workdir, json.loads(text))
  elif write:
    _check_left(workdir)
    now = json.loads(text)
    now["adapt"] = adapters.named(now["adapt"])
    _write(file, json.dumps(now, indent=2) + "\n")
  else:
    raise InputError(
      f"process 0 wrote {file}, but another process does not find it: --workdir must "
      "be on a file system that all machines share"
    )


def _check_config(workdir, now: dict):
  """Compares a config with that of the run in a directory."""
  there = _read_object(workdir / "config.json")
  if isinstance(there.get("adapt"), dict):
    there["adapt"] = adapters.named(there["adapt"], {})
    now = now | dict(adapt=adapters.named(now["adapt"], there["adapt"]))
  known = {
    key: x for key, x in configs.filled(there).items() if key in there or key in now
  }
  changed = _changes(known | {key: now.get(key) for key in _WHERE}, now)
  if changed:
    raise InputError(
      f"{workdir} holds a run of another config ({'; '.join(changed[:4])}); "
      "use another --workdir, or delete this one"
    )


def _check_left(workdir):
  """Refuses a directory with parts of a run, but without its config."""
  left = [name for name in _OF_A_RUN if (workdir / name).exists()]
  if left and not (workdir / "config.json").exists():
    raise InputError(
      f"{workdir} has {' and '.join(left)} of a run, but its config.json is gone; "
      "put it back, or use another --workdir"
    )


def _check_data(workdir, config, hashes: dict, write: bool):
  """Compares the data with those that the run began with; an old run takes these."""
  file = workdir / "data.json"
  there = _read_object(file) if file.exists() else {}
  for key, now in hashes.items():
    before = there.get(key, now)
    if before != now:
      section, name = key.split(".")
      raise InputError(
        f"{key}={config[section][name]} has changed since the run in {workdir} began "
        f"(its hash was {str(before)[:12]}, now it is {now[:12]}); put the old data "
        "back, or use another --workdir"
      )
  if write and hashes.keys() - there.keys():
    _write(file, json.dumps(there | hashes, indent=2) + "\n")


def _write(file: pathlib.Path, text: str):
  """Writes a file so that it appears whole or not at all."""
  tmp = file.with_suffix(".tmp")
  tmp.write_text(text)
  tmp.replace(file)


def read_config(workdir) -> Any:
  """The locked config of the run in `workdir`, with defaults for keys added later.

  Raises:
    InputError: the directory holds no run.
  """
  path = pathlib.Path(workdir) / "config.json"
  try:
    values = configs.filled(_read_object(path))
    values["adapt"] = adapters.named(values["adapt"], {})
  except (
    OSError,
    ValueError,
    RecursionError,
  ) as e:  # ValueError: not JSON, or not text
    reason = str(e).split("\n")[0]
    raise InputError(f"{workdir} is no run: cannot read {path}: {reason}") from e
  return config_dict.ConfigDict(values, convert_dict=True).lock()


def _read_object(path: pathlib.Path) -> dict:
  """The JSON object in a file; raises ValueError if it holds something else."""
  value = json.loads(path.read_text())
  if not isinstance(value, dict):
    raise ValueError("it holds no JSON object")
  return value


def _changes(old: dict, new: dict, place: str = "") -> list[str]:
  """Keys whose values differ, e.g. "optim.lr: 0.1 there, 0.2 now"."""
  out = []
  for key in sorted(old.keys() | new.keys()):
    a, b = old.get(key), new.get(key)
    if isinstance(a, dict) and isinstance(b, dict):
      out += _changes(a, b, f"{place}{key}.")
    elif a != b:
      out.append(f"{place}{key}: {a!r} there, {b!r} now")
  return out
