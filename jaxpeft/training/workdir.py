"""A run's directory: its config.json, its lock, and whether a run may continue."""

import fcntl
import json
import os
import pathlib
from typing import Any

from ml_collections import config_dict

from jaxpeft import config as configs
from jaxpeft.errors import InputError
from jaxpeft.parallel import distributed

_WHERE = ("mesh", "processes", "log")  # sections that may change when a run continues


def prepare(path: str, config) -> pathlib.Path:
  """The run's directory, after writing config.json there or checking the existing one.

  If there are several processes, all must call it: process 0 writes, the others check.

  Raises:
    InputError: in every process, if the directory is not writable, holds a run of
      another config, or is not the same directory for all processes.
  """
  workdir = pathlib.Path(path)
  text = json.dumps(configs.to_json(config), indent=2) + "\n"
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
  if file.exists():
    there, now = json.loads(file.read_text()), json.loads(text)
    known = {
      key: x for key, x in configs.filled(there).items() if key in there or key in now
    }
    changed = _changes(known | {key: now.get(key) for key in _WHERE}, now)
    if changed:
      raise InputError(
        f"{workdir} holds a run of another config ({'; '.join(changed[:4])}); "
        "use another --workdir, or delete this one"
      )
  elif write:
    tmp = file.with_suffix(".tmp")
    tmp.write_text(text)
    tmp.replace(file)
  else:
    raise InputError(
      f"process 0 wrote {file}, but another process does not find it: --workdir must "
      "be on a file system that all machines share"
    )


def read_config(workdir) -> Any:
  """The locked config of the run in `workdir`, with defaults for keys added later.

  Raises:
    InputError: the directory holds no run.
  """
  path = pathlib.Path(workdir) / "config.json"
  try:
    values = json.loads(path.read_text())
  except (OSError, ValueError) as e:  # ValueError: not JSON, or not text
    raise InputError(f"{workdir} is no run: cannot read {path}: {e}") from e
  if not isinstance(values, dict):
    raise InputError(f"{workdir} is no run: {path} holds no JSON object")
  return config_dict.ConfigDict(configs.filled(values), convert_dict=True).lock()


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
