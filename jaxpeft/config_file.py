"""Loads a config file such as those in configs/, and applies --config.KEY=VALUE.

The file is run first, so that its own mistakes are reported as such. Then the command
line may change every key, and may add keys where the config is open: options of a
method or optimizer that the file does not set, and further adapters.
"""

import pathlib
import re
import runpy
import traceback
import typing

from absl import flags
from ml_collections import config_dict, config_flags

from jaxpeft import config as configs
from jaxpeft import open_keys
from jaxpeft.errors import InputError, unknown

_WORD = re.compile(r"--?config(\.(?P<key>[^=]+))?(=(?P<value>.*))?", re.DOTALL)


def load(path: str, changes: list[str]):
  """The config of a file after changes.

  Args:
    path: a file like those in configs/; FILE:ARGUMENT passes an argument to its
      `get_config`.
    changes: arguments "--config.KEY=VALUE".
  Raises:
    InputError: a file that cannot be loaded, an unknown key, a value of another type,
      or a change that is no "--config.KEY=VALUE".
  """
  config, rest = command_line(["", f"--config={path}", *changes])[1:]
  if rest[1:]:
    raise InputError(f"only --config.KEY=VALUE may follow, not {rest[1]!r}")
  assert config is not None  # a path was given
  return config


def places(path: str) -> tuple[str, str]:
  """Where runs of a config lie by default: in this version, and in older ones."""
  (name,) = names([path])
  return f"runs/{folder(name)}", f"runs/{pathlib.Path(path.partition(':')[0]).stem}"


def names(paths: list[str]) -> list[str]:
  """A short name for each config: NAME or NAME:ARGUMENT, after folders if need be.

  Args:
    paths: FILE or FILE:ARGUMENT each.
  Raises:
    InputError: two are the same, or would share a directory, see `folder`.
  """
  parts, own = [], []
  for path in paths:
    file, _, argument = path.partition(":")
    parts.append(pathlib.Path(file).resolve().with_suffix("").parts)
    own.append(f":{argument}" if argument else "")
  out: list[str] = []
  for this, end in zip(parts, own, strict=True):
    same = [x for x, e in zip(parts, own, strict=True) if folder(e) == folder(end)]
    length = next(
      (n for n in range(1, len(this)) if [x[-n:] for x in same].count(this[-n:]) == 1),
      None,
    )
    if length is None:
      raise InputError(f"the config {'/'.join(this[-1:]) + end} is there twice")
    out.append("/".join(this[-length:]) + end)
  places = [folder(name) for name in out]
  for i, place in enumerate(places):
    if place in places[:i]:
      other = out[places.index(place)]
      raise InputError(
        f"the configs {other} and {out[i]} would share the directory {place}; rename "
        "one of the files"
      )
  return out


def folder(name: str) -> str:
  """A name of `names` as a path: NAME_ARGUMENT, without unusual characters."""
  return re.sub(r"[^\w./=-]+", "_", name)


class CommandLine(typing.NamedTuple):
  """A command line whose words about the config are taken out."""

  path: str | None  # FILE or FILE:ARGUMENT
  config: typing.Any  # a ConfigDict, locked as that of `configs.base`; or None
  rest: list[str]  # the other words, the program's name first


def command_line(argv: list[str]) -> CommandLine:
  """Reads --config=FILE and --config.KEY=VALUE; raises like `load`.

  Args:
    argv: the command line, the program's name first. A value may also be the next word.
  """
  path, changes, rest, words = None, [], [], list(argv)
  while words:
    word = words.pop(0)
    match = _WORD.fullmatch(word)
    if not match:
      rest.append(word)
      continue
    value = match["value"]
    if value is None:  # it is the next word; a switch alone is true
      value = words.pop(0) if words and not words[0].startswith("--") else "true"
    if match["key"]:
      changes.append((match["key"], value))
    else:
      path = value
  if path is None:
    if changes:
      raise InputError(
        f"--config.{changes[0][0]} changes no config: give --config=FILE"
      )
    return CommandLine(None, None, rest)
  return CommandLine(path, _change(_run(path), changes), rest)


def _run(path: str) -> config_dict.ConfigDict:
  """What `get_config` of a file returns.

  Raises:
    InputError: with the file and the line, whatever went wrong in it.
  """
  file, colon, argument = path.partition(":")  # FILE or FILE:ARGUMENT
  if not pathlib.Path(file).is_file():
    raise InputError(
      f"there is no config file {file}; `python -m jaxpeft list` lists them"
    )
  where = f"config file {file}"
  try:
    get_config = runpy.run_path(file).get("get_config")
    if not callable(get_config):
      raise InputError("it has no function `get_config`, which returns the config")
    found = get_config(argument) if colon else get_config()
  except KeyboardInterrupt:
    raise
  except BaseException as e:  # whatever it raises, also SystemExit
    frames = traceback.extract_tb(e.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    line = e.lineno if isinstance(e, SyntaxError) else (lines or [None])[-1]
    text = " ".join(str(e).split())
    text = text if isinstance(e, InputError) else f"{type(e).__name__}: {text}"
    raise InputError(f"{where}{f', line {line}' if line else ''}: {text}") from e
  if not isinstance(found, config_dict.ConfigDict):
    kind = type(found).__name__
    raise InputError(f"{where}: get_config returns {kind}, not a config; {_START}")
  _compare(found, configs.base(), where)
  return found


_START = "start from jaxpeft.config.base() and change its keys"


def _compare(found, base, where: str, place: str = ""):
  """Raises InputError if a config has other keys than `base`, except open ones."""
  for key in found:
    if key not in base:
      if open_keys.is_open(place):
        continue
      raise InputError(f"{where}: {_unknown(place, key, base)}")
  for key in base:
    if key not in found:
      raise InputError(f"{where}: the config has no key {place}{key}; {_START}")
    old, new = base[key], found[key]
    if isinstance(old, config_dict.ConfigDict):
      if not isinstance(new, config_dict.ConfigDict):
        raise InputError(f"{where}: {place}{key} is {new!r}, not a section; {_START}")
      _compare(new, old, where, f"{place}{key}.")


def _change(config, changes: list[tuple[str, str]]):
  """`config` with (key, value) from the command line, in its keys' types."""
  given = dict(changes)
  for key in given:
    _find_or_add(config, key, given)
  for change in changes:
    config = _set(config, *change)
  _compare(config, configs.base(), "command line")  # a section may be replaced
  return config


def _set(config, key: str, value: str):
  """`config` with one key changed."""
  words = ["", f"--config.{key}={value}"]
  values = flags.FlagValues()
  try:
    config_flags.DEFINE_config_dict(
      "config", config, flag_values=values, lock_config=False, sys_argv=words
    )
    values(words)
  except Exception as e:  # whatever it raises, the value cannot be used
    raise InputError(f"command line: --config.{key}={value}: {_reason(e)}") from e
  return values.config


def _reason(error: Exception) -> str:
  text = _first_line(error)
  for kind, words in _WANTED.items():
    if kind in text:
      return f"the value must be {words}"
  return text


# What a failed conversion says -> what is wanted.
_WANTED = {
  "invalid literal for int()": "a whole number",
  "could not convert string to float": "a number",
  "Non-boolean argument": "true or false",
}


def _find_or_add(config, key: str, given: dict[str, str]):
  """Makes sure that the config has a key; adds it, if it is an open one.

  Raises:
    InputError: there is no such key.
  """
  parts, at = key.split("."), config
  for i, part in enumerate(parts):
    place = "".join(f"{p}." for p in parts[:i])
    if not isinstance(at, config_dict.ConfigDict):
      raise InputError(
        f"command line: --config.{key}: {place[:-1]} is {at!r}, which has no keys"
      )
    if part not in at:
      value = open_keys.default(config, parts[: i + 1], given)
      if value is None:
        raise InputError(f"command line: {_unknown(place, part, at)}")
      with at.unlocked():
        at[part] = value
    at = at[part]


def _unknown(place: str, key: str, known) -> InputError:
  return unknown("config key", f"{place}{key}", [f"{place}{name}" for name in known])


def _first_line(error: Exception) -> str:
  return (str(error).strip() or type(error).__name__).split("\n")[0][:500]
