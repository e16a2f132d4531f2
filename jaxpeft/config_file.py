"""Loads a config file such as those in configs/, and applies --config.KEY=VALUE."""

import pathlib

from absl import app, flags
from ml_collections import config_flags

from jaxpeft.errors import InputError


def define_flag(values=flags.FLAGS, argv=None):
  """Declares the flag --config, whose keys --config.KEY=VALUE overrides.

  Args:
    values: the absl flags to which it is added.
    argv: arguments that may hold --config.KEY; None is the command line.
  """
  about = "A config file, e.g. configs/lora.py; --config.KEY=VALUE changes a key."
  config_flags.DEFINE_config_file(
    "config", None, about, flag_values=values, sys_argv=argv
  )


def load(path: str, changes: list[str]):
  """The config of a file after changes; raises like `parse`.

  Args:
    path: a file like those in configs/.
    changes: arguments "--config.KEY=VALUE".
  """
  values, argv = flags.FlagValues(), ["", f"--config={path}", *changes]
  define_flag(values, argv)
  return parse(argv, values).config


def path(values) -> str:
  """The path that --config names."""
  return values["config"].config_filename


def parse(argv: list[str], values=flags.FLAGS):
  """absl's flags, parsed from a command line.

  Args:
    argv: the command line, the program's name first.
    values: the flags that were declared.
  Raises:
    InputError: an unknown flag or key, a value of the wrong type, or a config file that
      cannot be loaded.
  """
  if values is flags.FLAGS:
    app.define_help_flags()
  for word in argv[1:]:
    name = word.removeprefix("--config=").partition(":")[0]  # FILE or FILE:ARGUMENT
    if word.startswith("--config=") and not pathlib.Path(name).is_file():
      raise InputError(
        f"there is no config file {name}; `python -m jaxpeft list` lists them"
      )
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
      more = (
        ""
        if "Did you mean" in known
        else "; an option of an adapter or optimizer that the config file does not set "
        "has to be added there first"
      )
      raise InputError(f"command line: the config has no key {known}{more}") from e
    raise InputError(f"command line: {_first_line(e)}") from e
  if "config" in values:
    try:  # the file is loaded lazily: errors appear at the first attribute access
      getattr(values.config, "is_locked", None)
    except OSError as e:
      name = path(values)
      reason = " ".join(str(e.__cause__ or e).split())
      raise InputError(f"cannot load --config={name}: {reason}") from e
  if len(rest) > 1:
    raise InputError(f"command line: unexpected {rest[1]!r}; options start with --")
  return values


def _first_line(error: Exception) -> str:
  """The message's first line; that of the config file's own error, if it raised one."""
  shown: BaseException = error
  link = error.__cause__ or error.__context__
  while link is not None:
    shown = link if isinstance(link, InputError) else shown
    link = link.__cause__ or link.__context__
  return (str(shown).strip() or type(shown).__name__).split("\n")[0]
