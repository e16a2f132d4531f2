"""The task of a run, and whether its problems fit the task and the model."""

from collections.abc import Sequence
from typing import Any

from jaxpeft import console
from jaxpeft.errors import InputError
from jaxpeft.evaluation import tasks
from jaxpeft.generation.ask import completion_ids, prompt_ids


def task_of(config, rows: Sequence[dict]) -> Any:
  """The task of `config.eval` for the held-out rows; None if there is no task.

  Raises:
    InputError: the options do not fit the rows, or a problem has no answer to compare
      with; the message names its row.
  """
  e = config.eval
  if not e.task or not rows:
    return None
  task = tasks.make(e.task, e, rows)
  for number, row in enumerate(rows[: e.limit or None], 1):
    try:
      task.prompt(row)
      task.gold(row)
    except InputError as error:
      raise InputError(f"{config.data.eval}, row {number}: {error}") from error
  return task


def has_loss(objective, rows: Sequence[dict], task) -> bool:
  """Whether a run's objective can take a loss on rows; a task may have others.

  Raises:
    InputError: it cannot, and there is no task that could use them.
  """
  try:
    for number, row in enumerate(rows, 1):
      objective.checked(row, f"data.eval, row {number}")
  except InputError as error:
    if task is None:
      raise
    console.note(f"note: no held-out loss: {error}")
    return False
  return True


def check_positions(config, task, problems: Sequence[dict], tokenizer, limit, shots=()):
  """Refuses problems for whose answers the model has no positions.

  Args:
    config: of the run.
    task: from `task_of`.
    problems: its problems.
    tokenizer: the model's.
    limit: the model's positions.
    shots: for each problem, the solved rows that its prompt shows; () shows none.
  Raises:
    InputError: with the key to change.
  """
  shown = shots or [()] * len(problems)
  for number, (row, own) in enumerate(zip(problems, shown, strict=True), 1):
    prompt, given = task.prompt(row, own), task.completions(row)
    before = len(prompt_ids(tokenizer, prompt))
    if given:
      new = max(len(completion_ids(tokenizer, prompt, x)[1]) for x in given)
      what, way = f"{new} of a label", "leave such rows out"
    else:
      new = config.eval.max_new_tokens
      what = f"eval.max_new_tokens {new}"
      way = "lower eval.max_new_tokens, or leave such rows out"
    if before + new > limit:
      much = f" with {len(own)} shots" if own else ""
      way = "lower eval.shots" if own else way
      raise InputError(
        f"{config.data.eval}, row {number}: a prompt of {before} tokens{much} and "
        f"{what} exceed the model's {limit} positions; {way}"
      )
