"""Runs a script of this project until a signal hits it: mishap.py JSON SCRIPT ARGS...

The JSON is a list with an entry for each start of the script: an object, or null for no
mishap. JAXPEFT_RESTART, which the launcher counts, tells which start it is.

{"signal": 9, "step": 4} comes after that step, before it is saved; "process": 1 (if not
0) is who gets it. {"signal": 9, "at": "commit"} comes when a checkpoint is written and
not yet renamed; "at": "answers" when the adapter is saved and is asked its questions.
Where several processes have to agree to stop, {"pause": 3} slows every later step.
"""

import json
import os
import pathlib
import runpy
import signal
import sys
import time

from jaxpeft.evaluation import evaluate
from jaxpeft.parallel import distributed


def before(owner, name: str, act):
  """Has act(*args) called before a function of a module or class."""
  real = getattr(owner, name)

  def acts(*args, **kwargs):
    act(*args)
    return real(*args, **kwargs)

  setattr(owner, name, acts)


def prepare(number: int, step=None, at=None, process=0, pause=0):
  """Has the signal `number` come to this process, at the one place that is given."""

  def hit(*_):
    os.kill(os.getpid(), number)
    if number == signal.SIGKILL:
      time.sleep(600)  # in whatever thread: it goes no further

  def at_step(_, now):
    if now == step and int(os.environ.get("JAXPEFT_PROCESS_ID", "0")) == process:
      hit()
    if now >= step:
      time.sleep(pause)

  def at_commit(_, target):
    if pathlib.Path(target).name.isdigit():
      hit()

  if step is not None:
    before(distributed.Stop, "agreed", at_step)
  elif at == "commit":
    before(os, "rename", at_commit)
  elif at == "answers":
    asked = []  # first the base model, and then the adapted one
    before(evaluate, "answers", lambda *_: hit() if asked else asked.append(1))


if __name__ == "__main__":
  sys.path[0] = str(pathlib.Path(__file__).parents[2])
  starts = json.loads(sys.argv[1])
  sys.argv = sys.argv[2:]
  mine = int(os.environ.get("JAXPEFT_RESTART", "0"))
  if mine < len(starts) and starts[mine]:
    prepare(starts[mine].pop("signal"), **starts[mine])
  runpy.run_path(sys.argv[0], run_name="__main__")
