"""Shots: solved rows of the training data that a prompt shows before its problem.

They are chosen as lm-evaluation-harness chooses them, so that both ask the same prompts
and give the same accuracy: problem i gets the i-th draw of one generator that is never
reset. The shots of a problem thus depend on its place among the problems, but not on
how many are asked.

Source: lm-evaluation-harness 0.4.13, api/samplers.py (`ContextSampler`).
"""

import random
from collections.abc import Sequence

from jaxpeft.data import sources
from jaxpeft.errors import InputError
from jaxpeft.generation.ask import Conversation

SEED = 1234  # the harness's --seed of its shots
_FITS = 2**28  # bytes of training files that are read as a whole
_FIRST = 100_000  # rows of larger ones that are read


def draw(
  pool: Sequence[dict], problems: Sequence[dict], count: int, same: bool = False
) -> list[list[dict]]:
  """The shots of every problem, in order.

  A problem is never among its own shots. If it is in the pool only by chance, its place
  is taken by a new draw; the harness would show it.

  Args:
    pool: rows to choose from.
    problems: rows that are asked.
    count: shots of a problem.
    same: whether the problems themselves are from the pool. The harness then draws one
      row more, and leaves out the problem or the last row.
  Raises:
    InputError: the pool has too few rows.
  """
  if not count:
    return [[] for _ in problems]
  if count + same > len(pool):
    raise InputError(
      f"eval.shots {count}: there are only {len(pool)} rows to choose them from; lower "
      "eval.shots, or give a larger data.train"
    )
  rng, found = random.Random(SEED), []
  for problem in problems:
    some = [x for x in rng.sample(pool, count + same) if x != problem][:count]
    if len(some) < count:
      others = [x for x in pool if x != problem]
      if len(others) < count:
        raise InputError(
          f"eval.shots {count}: data.train has only {len(others)} rows besides the "
          "problem that is asked; lower eval.shots"
        )
      some = rng.sample(others, count)
    found.append(some)
  return found


def of_run(config, task, problems: Sequence[dict]) -> list[list[dict]]:
  """The `eval.shots` shots of every problem of a run, from `data.train`.

  Only the rows that training may use are shown: `data.limit` counts here, too.

  Args:
    config: of the run.
    task: from `problems.task_of`; None has no prompts and needs no shots.
    problems: its problems.
  Raises:
    InputError: there are too few rows, or one does not fit the task.
  """
  d, count = config.data, config.eval.shots
  if task is None or not count:
    return [[] for _ in problems]
  source, limit = sources.find(d.train, d.columns), d.limit
  if source.files and source.size > _FITS:
    limit = min(limit or _FIRST, _FIRST)
  pool = source.read(limit)
  found = draw(pool, problems, count, same=d.train == d.eval)
  _check(task, pool, problems, found, d.train)
  return found


def _check(task, pool, problems, found, name):
  """Raises InputError if a chosen row cannot be shown before its problem."""
  place = {id(row): number for number, row in enumerate(pool, 1)}
  good = set()
  for problem, shots in zip(problems, found, strict=True):
    talks = isinstance(task.prompt(problem), Conversation)
    for shot in shots:
      if (id(shot), talks) in good:
        continue
      where = f"eval.shots shows data.train, {name}, row {place[id(shot)]}"
      try:
        fits = isinstance(task.prompt(shot), Conversation) == talks
      except InputError as error:
        raise InputError(f"{where}: {error}") from error
      if not fits:
        own, other = ("text", "conversation") if talks else ("conversation", "text")
        raise InputError(
          f"{where}: it is a {own}, and a problem of data.eval is a {other}; give both "
          "one form, or set eval.shots=0"
        )
      good.add((id(shot), talks))
