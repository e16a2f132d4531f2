"""Benchmarks, one file each: how a problem is asked, and how a text is scored.

A task is a module with
  prompt(row, shots=()) -> str    the problem, after solved examples (rows) if any
  cut(text) -> str                the reply up to where the task stops generating
  RULES                           names of the ways to extract an answer from a text
  answer(text, rule) -> str       the extracted answer, for voting
  score(text, row) -> {rule: bool}
"""

from jaxpeft.errors import unknown
from jaxpeft.evaluation.tasks import gsm8k

TASKS = {"gsm8k": gsm8k}


def get(name: str):
  """The task of that name.

  Raises:
    InputError: if there is no such task.
  """
  if name not in TASKS:
    raise unknown("task", name, TASKS)
  return TASKS[name]
