"""Benchmarks, one file each: prompt, answer extraction, score.

A task is a module with
  prompt(row) -> str
  cut(text) -> str             the answer, without what follows it
  RULES                        names of the ways to extract an answer
  score(text, row) -> {rule: bool}
"""

from jaxpeft.errors import unknown
from jaxpeft.evaluation.tasks import gsm8k

TASKS = {"gsm8k": gsm8k}


def get(name: str):
  """The task of that name.

  Raises:
    InputError: if there is none.
  """
  if name not in TASKS:
    raise unknown("task", name, TASKS)
  return TASKS[name]
