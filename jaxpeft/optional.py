"""Packages that only some users need, imported when they are used."""

import importlib
from typing import Any

from jaxpeft.errors import InputError


def package(name: str, need: str, extra: str) -> Any:
  """The module of that name.

  Args:
    name: of the module; a dot names a module in a package.
    need: what needs it; the message begins with it.
    extra: the extra of this project that installs it.
  Raises:
    InputError: it is not installed; the message says how to install it.
  """
  try:
    return importlib.import_module(name)
  except ImportError as e:
    raise InputError(f"{need}: pip install -e '.[{extra}]'") from e
