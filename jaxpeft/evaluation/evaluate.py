"""Accuracy of generated answers and teacher-forced loss; the same in train and eval."""

import math
from typing import NamedTuple

import jax
import numpy as np

from jaxpeft.data import batches
from jaxpeft.evaluation import tasks
from jaxpeft.generation import decode
from jaxpeft.model import Model
from jaxpeft.parallel import distributed


class Answers(NamedTuple):
  """Generated answers of a task and their scores."""

  accuracy: dict[str, float]  # by extraction rule
  interval: dict[str, tuple[float, float]]  # 95 %, from the number of problems alone
  records: list[dict]  # prompt, text, correct by rule


def answers(
  model: Model,
  rows,
  task: str,
  *,
  batch_size: int,
  max_new_tokens: int,
  seed: int,
  sampling: decode.Sampling,
  label: str = "answers",
) -> Answers:
  """Generates and scores an answer to every row.

  Rows are decoded in order of prompt length, so that a batch pads little.
  """
  task = tasks.get(task)
  texts = [task.prompt(row) for row in rows]
  ids = [model.tokenizer.encode(text, bos=True) for text in texts]
  order = sorted(range(len(rows)), key=lambda i: len(ids[i]))
  out = decode.generate(
    model.transformer,
    model.params,
    [ids[i] for i in order],
    max_new_tokens,
    model.tokenizer.eos_ids,
    sampling,
    seed,
    batch_size,
    label,
  )
  new = dict(zip(order, out, strict=True))
  records = []
  for i, row in enumerate(rows):
    text = task.cut(model.tokenizer.decode(new[i]))
    records.append(dict(prompt=texts[i], text=text, correct=task.score(text, row)))
  rules = records[0]["correct"].keys()
  hits = {rule: sum(r["correct"][rule] for r in records) for rule in rules}
  return Answers(
    {rule: hit / len(rows) for rule, hit in hits.items()},
    {rule: wilson(hit, len(rows)) for rule, hit in hits.items()},
    records,
  )


def loss(evaluate, params, examples, max_tokens: int, batch_size: int) -> float:
  """Mean teacher-forced loss over the supervised tokens of all examples, in nats.

  Args:
    evaluate: from `training.make_eval`.
    params: adapted or not.
    examples: list of Example; packed, the last batch filled up with empty rows.
    max_tokens: of a packed row.
    batch_size: rows at once.
  """
  rows = batches.pack(examples, max_tokens)
  rows += [[] for _ in range(-len(rows) % batch_size)]
  sums = []
  for i in range(0, len(rows), batch_size):
    batch = batches.to_arrays(rows[i : i + batch_size], max_tokens)
    sums.append(evaluate(params, batch))
    if distributed.count() > 1:  # which must run programs with collectives in one order
      jax.block_until_ready(sums[-1])
  total, tokens = np.sum([[float(a), float(b)] for a, b in sums], axis=0)
  return total / tokens


def wilson(hits: int, count: int, z: float = 1.959964) -> tuple[float, float]:
  """95 % interval of a share. Source: Wilson 1927."""
  share, square = hits / count, z * z / count
  middle = (share + square / 2) / (1 + square)
  half = (
    z * math.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
  )
  return max(0.0, middle - half), min(1.0, middle + half)
