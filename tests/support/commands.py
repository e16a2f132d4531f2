"""Programs that tests start."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def run(env, script: str, *args: str) -> str:
  """The output of a script, which must succeed."""
  command = [sys.executable, script, *args]
  out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
  assert out.returncode == 0, out.stdout + out.stderr
  return out.stdout
