"""Compiles a program in another thread, while this one prepares its arguments.

XLA compiles with one core for most of the time, and decompositions of many weights
leave time between their layers.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax

from jaxpeft.adapters import cores
from jaxpeft.training import compiled_bytes


class Ahead:
  """A jitted function that is being compiled for arguments of known shapes."""

  def __init__(self, function, shapes: Callable):
    """Begins to compile.

    Args:
      function: jitted.
      shapes: returns the arguments as shapes; called in the other thread.
    """
    self._function, self._shapes = function, [shapes]
    self._context = cores.context()
    pool = ThreadPoolExecutor(1)
    self._future = pool.submit(self._compile)
    pool.shutdown(wait=False)

  def get(self, *arguments):
    """(compiled function, seconds that it took); None if it does not fit.

    Args:
      arguments: of the function; only their shapes and dtypes matter.
    """
    try:
      found = self._future.result()
    except Exception:  # whoever compiles it again gets the same error
      return None
    return found[1:] if found and found[0] == _described(arguments) else None

  def _compile(self):
    if cores.context() != self._context:  # the program might be another one here
      return None
    shapes = self._shapes.pop()()  # and forget the function: it may hold weights
    return _described(shapes), *now(self._function, *shapes)


def now(function, *arguments):
  """(function compiled for such arguments, seconds that it took)."""
  started = time.monotonic()
  compiled = function.lower(*arguments).compile()
  compiled_bytes.return_freed()
  return compiled, time.monotonic() - started


def _described(tree) -> tuple:
  """What a compiled program demands of its arguments."""
  leaves, structure = jax.tree.flatten(tree)
  return structure, [
    (x.shape, x.dtype, bool(getattr(x, "weak_type", False))) for x in leaves
  ]
