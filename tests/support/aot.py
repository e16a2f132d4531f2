"""Where tests find what compiles for a GPU without one: `$JAXPEFT_AOT`, or installed.

A directory of its own (the README has the command), as JAX's CUDA plugin in the
environment has JAX look for a GPU in every process.
"""

import os
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def environment(*modules: str) -> dict[str, str]:
  """Of a process that can import modules; skips the test where one is missing."""
  directory = [x for x in [os.environ.get("JAXPEFT_AOT")] if x]
  for module in modules:
    inside = module.replace(".", "/")
    if not any((pathlib.Path(x) / inside).is_dir() for x in directory + sys.path):
      pytest.skip(f"{module} is neither installed nor in JAXPEFT_AOT={directory}")
  return os.environ | dict(
    PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *directory]),
    JAX_PLATFORMS="cpu",
    JAX_SKIP_CUDA_CONSTRAINTS_CHECK="1",
    CUDA_VISIBLE_DEVICES="-1",
  )
