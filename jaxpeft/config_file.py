"""A file of configs/, with `--config.KEY=VALUE` changed."""

from absl import app, flags
from ml_collections import config_flags

from jaxpeft.errors import InputError


def define_flag(values=flags.FLAGS, argv=None):
  """Declares --config, a file in configs/ whose keys --config.KEY overrides.

  Args:
    values: where to.
    argv: in which to look for those keys; None is the command line.
  """
  about = "A file of configs/; --config.KEY=VALUE changes a key."
  config_flags.DEFINE_config_file(
    "config", None, about, flag_values=values, sys_argv=argv
  )


def load(path: str, changes: list[str]):
  """The config of a file, with `--config.KEY=VALUE` changed; errors as of `parse`."""
  values, argv = flags.FlagValues(), ["", f"--config={path}", *changes]
  define_flag(values, argv)
  return parse(argv, values).config


def path(values) -> str:
  """The file that --config names."""
  return values["config"].config_filename


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
        "optimizer that its config file does not name has to be added there first"
      ) from e
    raise InputError(f"command line: {_first_line(e)}") from e
  if "config" in values:
    try:  # a file that cannot be loaded fails when an attribute is asked for
      getattr(values.config, "is_locked", None)
    except OSError as e:
      name = path(values)
      reason = " ".join(str(e.__cause__ or e).split())
      raise InputError(f"cannot load --config={name}: {reason}") from e
  if len(rest) > 1:
    raise InputError(f"command line: unexpected {rest[1]!r}; options start with --")
  return values


def _first_line(error: Exception) -> str:
  return (str(error).strip() or type(error).__name__).split("\n")[0]
