"""Keys that the command line may add to a config, with their types.

Sections that hold names of the user's choice are open: adapters, options of the
optimizer and groups of learning rates. What a method or an optimizer takes is read from
its signature, so that an option need not be written into a config file first.
"""

import dataclasses
import inspect
import types
import typing

from ml_collections import config_dict

from jaxpeft.errors import InputError, unknown

_OPEN = ("adapt.", "optim.options.", "optim.groups.", "data.columns.")
_TYPES = (bool, int, float, str, tuple)


def is_open(place: str) -> bool:
  """Whether a section, e.g. "adapt.main.", may have keys that `config.base` lacks."""
  return place.startswith(_OPEN)


def default(config, key: list[str], given: dict[str, str]):
  """A value, or a placeholder with a type, for a key that the config lacks.

  Args:
    config: the config so far.
    key: the parts of the key, e.g. ["adapt", "main", "rank"].
    given: {key: text} of the whole command line, whose `name` decides which options
      there are.
  Returns:
    None if the section of the key is closed.
  Raises:
    InputError: the method or the optimizer has no such option.
  """
  match key:
    case ["adapt", _] | ["optim", "groups", _]:
      return config_dict.ConfigDict()
    case ["adapt", _, "name" | "match"] | ["optim", "groups", _, "match"]:
      return config_dict.placeholder(str)
    case ["adapt", entry, option]:
      name = given.get(f"adapt.{entry}.name") or config.adapt[entry].get("name")
      return _option_of_method(name, option, f"config.adapt.{entry}")
    case ["optim", "groups", _, "times"]:
      return config_dict.placeholder(float)
    case ["optim", "options", option]:
      name = given.get("optim.name") or config.optim.name
      return _option_of_optimizer(name, option)
    case ["data", "columns", _]:
      return config_dict.placeholder(str)
  return None


def _option_of_method(name, option: str, where: str):
  from jaxpeft import adapters  # imports JAX: only a command that adds a key waits

  if name is None:
    raise InputError(
      f"{where} lacks name: a method, e.g. LoRA; set --{where}.name=... and "
      f"--{where}.match=..., a regex of paths of weights"
    )
  if name not in adapters.METHODS:
    raise unknown(f"method in {where}.name", name, adapters.METHODS)
  method = adapters.METHODS[name]
  fields = {field.name: field.default for field in dataclasses.fields(method)}
  if option not in fields:
    raise unknown(f"option of {name} in {where}", option, fields)
  return _typed(fields[option], typing.get_type_hints(method)[option])


def _option_of_optimizer(name: str, option: str):
  from jaxpeft.training import optimizer

  factory = optimizer.factories().get(name)
  if factory is None:
    raise unknown("optimizer in optim.name", name, optimizer.factories())
  known = inspect.signature(factory).parameters
  if option not in known:
    raise unknown(f"option of {name} in optim.options", option, known)
  return _typed(known[option].default, None)


def _typed(value, hint):
  """The default of an option, or a placeholder of its type if that is None."""
  if isinstance(value, _TYPES):
    return value
  union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
  choices = typing.get_args(hint) if union else (hint,)
  kind = next((c for c in choices if c in _TYPES), object)  # object: as it is written
  return config_dict.placeholder(kind)
