"""The data of a run: training batches, held-out examples and the task's problems."""

from typing import Any, NamedTuple

from jaxpeft import objectives
from jaxpeft.data import batches, encode, sources
from jaxpeft.errors import InputError
from jaxpeft.evaluation import tasks
from jaxpeft.model import Model


class Data(NamedTuple):
  """What a run is trained and evaluated on."""

  batches: Any  # batches[step] -> arrays [B, ...]
  held_out: list[encode.Example]  # for the loss; empty if config.data.eval is ""
  problems: list[dict]  # for the task
  summary: list[str]  # lines for the log


def training_rows(config) -> list[dict]:
  """Rows of config.data.train, read before the model so that errors come soon."""
  return sources.read(config.data.train, config.data.limit)


def held_out_rows(config) -> list[dict]:
  """Rows of config.data.eval; [] if there is none.

  Raises:
    InputError: rows that cannot be read, or that the task cannot use.
  """
  if not config.data.eval:
    return []
  rows = sources.read(config.data.eval)
  if config.eval.task:
    for row in rows[: config.eval.limit or None]:
      tasks.get(config.eval.task).prompt(row)
  return rows


def read(config, base: Model, rows=None, held=None) -> Data:
  """Training batches, held-out examples and the task's problems.

  Args:
    config: of the run.
    base: the model whose tokenizer encodes them.
    rows, held: of `training_rows` and `held_out_rows`; None reads them.
  Raises:
    InputError: data that cannot be used; see `sources` and `encode`.
  """
  d, tokenizer = config.data, base.tokenizer
  rows = training_rows(config) if rows is None else rows
  held = held_out_rows(config) if held is None else held
  objective = objectives.from_config(config)
  train = objective.encode(rows, tokenizer, d.max_tokens, d.train)
  _check_tokens(config, base, train.examples)
  made = batches.make(
    train.examples, d.max_tokens, config.train.batch_size, d.pack, config.seed
  )
  summary, examples, problems = [train.summary(d.train)], [], []
  if not tokenizer.eos_ids:
    summary.append(
      "the tokenizer names no end of text: answers are learned without one"
    )
  if held:
    examples, problems, line = held_out(config, tokenizer, held)
    summary.append(line)
    _check_prompts(config, base, problems)
  return Data(made, examples, problems, summary)


def held_out(config, tokenizer, rows):
  """(examples for the loss, problems for the task, summary) of `held_out_rows`."""
  d, some = config.data, rows[: config.eval.loss_limit or None]
  objective = objectives.from_config(config)
  held = objective.encode(some, tokenizer, d.max_tokens, d.eval)
  return held.examples, rows[: config.eval.limit or None], held.summary(d.eval)


def _check_tokens(config, base: Model, examples):
  """Refuses examples with more tokens, or other tokens, than the model has."""
  d, limit = config.data, base.config.max_positions
  longest = max(len(example.tokens) for example in examples)
  if longest > limit:
    raise InputError(
      f"{d.train} has an example of {longest} tokens, the model has {limit} positions; "
      f"lower data.max_tokens ({d.max_tokens}) to cut it"
    )
  largest = max(int(example.tokens.max()) for example in examples)
  if largest >= base.config.vocab_size:
    raise InputError(
      f"the tokenizer gives token {largest} "
      f"({base.tokenizer.core.id_to_token(largest)!r}), the model has "
      f"{base.config.vocab_size} embeddings; model and tokenizer do not match"
    )


def _check_prompts(config, base: Model, problems):
  """Refuses problems whose answers the model has no positions for."""
  if not config.eval.task:
    return
  texts = [tasks.get(config.eval.task).prompt(row) for row in problems]
  longest = max(len(base.tokenizer.encode(text, bos=True)) for text in texts)
  if longest + config.eval.max_new_tokens > base.config.max_positions:
    raise InputError(
      f"a prompt of {longest} tokens and eval.max_new_tokens "
      f"{config.eval.max_new_tokens} exceed the model's {base.config.max_positions} "
      "positions; lower eval.max_new_tokens, or leave such rows out"
    )
