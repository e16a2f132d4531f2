"""Accuracy of generated answers, and teacher-forced loss."""

from typing import NamedTuple

import jax
import numpy as np

from jaxpeft.data import batches
from jaxpeft.evaluation import tasks
from jaxpeft.evaluation.intervals import wilson
from jaxpeft.generation.ask import Ask, Request
from jaxpeft.objectives import Objective
from jaxpeft.parallel import distributed


class Answers(NamedTuple):
  """Generated answers to a task's problems, and their scores."""

  accuracy: dict[str, float]  # by extraction rule
  interval: dict[str, tuple[float, float]]  # 95 %, over the choice of problems only
  records: list[dict]  # prompt, text, and {rule: whether it is correct}


def answers(ask: Ask, rows: list[dict], task: str) -> Answers:
  """Asks for one answer to every row, and scores it.

  Args:
    ask: the model that is asked.
    rows: problems of the task.
    task: a name in `tasks.TASKS`.
  """
  found = tasks.get(task)
  prompts = [found.prompt(row) for row in rows]
  replies = ask([Request(prompt) for prompt in prompts])
  records = []
  for prompt, reply, row in zip(prompts, replies, rows, strict=True):
    text = found.cut(reply.text)
    records.append(dict(prompt=prompt, text=text, correct=found.score(text, row)))
  rules = records[0]["correct"].keys()
  hits = {rule: sum(r["correct"][rule] for r in records) for rule in rules}
  return Answers(
    {rule: hit / len(rows) for rule, hit in hits.items()},
    {rule: wilson(hit, len(rows)) for rule, hit in hits.items()},
    records,
  )


def loss(
  evaluate, objective: Objective, params, examples, max_tokens: int, batch_size: int
) -> float:
  """Mean teacher-forced loss over everything that the objective takes a loss on.

  Args:
    evaluate: from `training.step.make_eval`.
    objective: makes arrays of packed examples.
    params: adapted or not.
    examples: list of Example; the last batch is filled up with empty rows.
    max_tokens: tokens of a packed row.
    batch_size: rows of a batch.
  """
  rows = [*batches.pack(examples, max_tokens)]
  rows += [[] for _ in range(-len(rows) % batch_size)]
  sums = []
  for i in range(0, len(rows), batch_size):
    batch = objective.batch(rows[i : i + batch_size], max_tokens)
    sums.append(evaluate(params, batch))
    if distributed.count() > 1:  # which must run programs with collectives in one order
      jax.block_until_ready(sums[-1])
  total, weight = np.sum([[float(a), float(b)] for a, b in sums], axis=0)
  return total / weight
