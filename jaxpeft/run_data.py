"""The data of a run: training batches, held-out examples and the task's problems."""

import math
import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from jaxpeft import console, objectives
from jaxpeft.data import batches, encode, files, fingerprint, sources, store
from jaxpeft.errors import InputError
from jaxpeft.evaluation import problems
from jaxpeft.evaluation import shots as shot_rows
from jaxpeft.model import Model

_FITS = 2**28  # bytes of files whose tokens may be in memory, if they must
_SAY_S = 5.0  # seconds between lines about the progress


class Rows(NamedTuple):
  """What `config.data` names, found and checked; the model is not needed for that."""

  train: sources.Source
  held_out: list[dict]  # [] if there are none
  hashes: dict[str, str]  # config key -> hash of the files' content; files only


class Data(NamedTuple):
  """What a run is trained and evaluated on."""

  batches: Any  # batches[step] -> arrays [B, ...]
  held_out: Sequence[encode.Example]  # for the loss; empty if config.data.eval is ""
  problems: list[dict]  # for the task
  summary: list[str]  # lines for the log
  hashes: dict[str, str] = {}  # noqa: RUF012  see `Rows`; nobody changes it
  task: Any = None  # that the problems are of
  shots: Sequence[list[dict]] = ()  # for each problem, what its prompt shows before it


def rows(config) -> Rows:
  """The rows of a run, found before the model is read so that errors come soon.

  Raises:
    InputError: rows that cannot be read, or that the task cannot use. Of a large file
      only the first rows are checked; the others are when they are tokenized.
  """
  d = config.data
  checked = objectives.from_config(config).checked
  train = sources.find(d.train, d.columns, checked)
  train.check()
  held = sources.find(d.eval, d.columns, checked) if d.eval else None
  found = {"data.train": train, "data.eval": held}
  hashes = {key: x.digest for key, x in found.items() if x is not None and x.digest}
  return Rows(train, _held_out_rows(config, held), hashes)


def held_out_rows(config) -> list[dict]:
  """Rows of config.data.eval; [] if there is none.

  Raises:
    InputError: rows that cannot be read, or that the task cannot use.
  """
  d = config.data
  return _held_out_rows(config, sources.find(d.eval, d.columns) if d.eval else None)


def _held_out_rows(config, source: sources.Source | None) -> list[dict]:
  if source is None:
    return []
  e = config.eval
  needed = max(e.limit, e.loss_limit) if e.limit and e.loss_limit else None
  found = source.read(needed if source.large else None)
  task = problems.task_of(config, found)
  shot_rows.of_run(config, task, found[: e.limit or None])
  return found


def read(config, base: Model, found: Rows | None = None) -> Data:
  """Training batches, held-out examples and the task's problems.

  Args:
    config: of the run.
    base: the model whose tokenizer encodes them.
    found: from `rows`; None finds them.
  Raises:
    InputError: data that cannot be used; see `sources` and `encode`.
  """
  d, tokenizer = config.data, base.tokenizer
  found = rows(config) if found is None else found
  train = _training_examples(config, tokenizer, found.train)
  _check_tokens(config, base, train)
  made = batches.make(
    train.examples, d.max_tokens, config.train.batch_size, d.pack, config.seed,
    objectives.from_config(config).batch,
  )  # fmt: skip
  summary, examples, asked = [train.summary(d.train)], [], []
  if not tokenizer.eos_ids:
    summary.append(
      "the tokenizer names no end of text: answers are learned without one"
    )
  if found.held_out:
    examples, asked, line = held_out(config, tokenizer, found.held_out)
    summary.append(line)
  task = problems.task_of(config, found.held_out)
  shots = shot_rows.of_run(config, task, asked)
  if task:
    limit = base.config.max_positions
    problems.check_positions(config, task, asked, tokenizer, limit, shots)
  return Data(made, examples, asked, summary, found.hashes, task, shots)


def held_out(config, tokenizer, rows):
  """(examples for the loss, problems for the task, summary) of `held_out_rows`."""
  d, some = config.data, rows[: config.eval.loss_limit or None]
  objective = objectives.from_config(config)
  held = objective.encode(some, tokenizer, d.max_tokens, d.eval)
  return held.examples, rows[: config.eval.limit or None], held.summary(d.eval)


def warn(config, found: Rows):
  """Says what is allowed and seldom meant: held-out data of another task, or none."""
  own = not str(config.data.train).startswith("embedded:")
  if own and str(config.data.eval).startswith("embedded:"):
    console.note(
      f"note: data.eval is still the toy's ({config.data.eval}); set data.eval to your "
      "own file, and eval.task='' for the loss only"
    )
  if len(found.hashes) == 2 and len(set(found.hashes.values())) == 1:
    console.note(
      "note: data.eval has the same content as data.train, so its loss and accuracy "
      "say how well the run remembers, not what it learned"
    )


def with_steps(config, batches_):
  """The config with the `train.steps` that follow from `train.epochs`, if given.

  Args:
    config: of the run.
    batches_: its training batches.
  Raises:
    InputError: train.epochs is not above 0, or gives more than 2**31 - 1 steps.
  """
  epochs = config.train.epochs
  if epochs is None:
    return config
  count = epochs * batches_.epoch_steps
  if not 0 < count < 2**31:
    raise InputError(
      f"train.epochs {epochs} of {batches_.epoch_steps:g} steps each must be more than "
      "0 and less than 2**31 steps in all"
    )
  config = config.copy_and_resolve_references()
  # A float that is a hair above a whole number of steps adds none.
  config.train.steps = max(1, math.ceil(count - 1e-6))
  return config.lock()


def check_batch(config, model):
  """Refuses batches that no memory of this machine could hold.

  What is counted is the least that a step keeps: the arrays of a batch, and for each
  token of a microbatch with a gradient what goes into every layer.

  Args:
    config: of the run.
    model: the `ModelConfig`.
  Raises:
    InputError: with both keys that decide about it.
  """
  d, t = config.data, config.train
  tokens = t.batch_size * d.max_tokens
  layers = model.depth * model.width * (2 if config.model.dtype == "bfloat16" else 4)
  share = min(1.0, config.tokens.fraction) / t.accumulate
  need, room = tokens * (20 + layers * share), _memory()
  if need > room:
    raise InputError(
      f"train.batch_size {t.batch_size} rows of data.max_tokens {d.max_tokens} need at "
      f"least {need / 1e9:,.0f} GB of memory, there are {room / 1e9:,.0f} GB; the "
      f"model has {model.max_positions} positions: lower data.max_tokens or "
      "train.batch_size, or raise train.accumulate"
    )


def _memory() -> float:
  """Bytes of memory that this run's devices have together."""
  device = jax.local_devices()[0]
  own = (device.memory_stats() or {}).get("bytes_limit")
  if own and device.platform != "cpu":
    return own * jax.device_count()
  host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  return host * jax.process_count()


def _training_examples(config, tokenizer, source: sources.Source) -> encode.Encoded:
  """The examples of a source; they are kept in files if making them takes a while."""
  d, objective = config.data, objectives.from_config(config)

  def make(into):
    before, progress = source.stamps(), _Progress(source.name)
    found = objective.encode(
      source.placed(d.limit), tokenizer, d.max_tokens, source.name, into, progress
    )
    if source.stamps() != before:
      raise InputError(f"{source.name} changed while it was read; start again")
    return found

  if not source.slow:
    return make(None)
  key = dict(
    data=source.digest or source.name,
    endings=[path.name.lower().split(".")[1:] for path in source.files],
    columns=dict(source.columns),
    limit=d.limit,
    max_tokens=d.max_tokens,
    objective=config.objective.name,
    pool=config.objective.pool,
    loss_on=d.loss_on,
    tokenizer=fingerprint.of_tokenizer(tokenizer),
    code=fingerprint.of_code(),
  )
  try:
    return encode.Encoded(*store.keep(key, make, console.note))
  except store.Unwritable as e:
    if source.size > _FITS:
      raise
    console.note(f"note: {e}. The tokens are held in memory")
    return make(None)


class _Progress:
  """Says every few seconds how much of a source is tokenized."""

  def __init__(self, name: str):
    self._name, self._started = name, time.monotonic()
    self._said = self._started

  def __call__(self, last: files.Placed):
    now = time.monotonic()
    if now - self._said < _SAY_S:
      return
    self._said, spent, share = now, now - self._started, last.share
    left = f", about {spent * (1 - share) / share:.0f} s left" if share > 0 else ""
    console.note(f"tokenizing {self._name}: {share:.0%}{left}")


def _check_tokens(config, base: Model, train: encode.Encoded):
  """Refuses examples with more tokens, or other tokens, than the model has."""
  d, limit = config.data, base.config.max_positions
  longest, largest = train.counts.longest, train.counts.largest
  if longest > limit:
    raise InputError(
      f"{d.train} has an example of {longest} tokens, the model has {limit} positions; "
      f"lower data.max_tokens ({d.max_tokens}) to cut it"
    )
  if largest >= base.config.vocab_size:
    raise InputError(
      f"the tokenizer gives token {largest} "
      f"({base.tokenizer.core.id_to_token(largest)!r}), the model has "
      f"{base.config.vocab_size} embeddings; model and tokenizer do not match"
    )
