"""From a config to everything a run needs: shared by train, eval, notebooks and CLI."""

import pathlib
from typing import Any, NamedTuple

import jax

from jaxpeft import adapters, console, model, tree
from jaxpeft.checkpoints import adapter as adapter_files
from jaxpeft.data import batches, encode, sources
from jaxpeft.errors import InputError, unknown
from jaxpeft.evaluation import tasks
from jaxpeft.parallel import sharding
from jaxpeft.training import step as training
from jaxpeft.training import workdir as workdirs

# The least value of options that are counts.
_LEAST = (
  ("train", "steps", 1),
  ("train", "batch_size", 1),
  ("train", "accumulate", 1),
  ("train", "log_every", 1),
  ("train", "eval_every", 0),
  ("train", "save_every", 0),
  ("train", "patience", 0),
  ("train", "neftune", 0),
  ("data", "limit", 1),
  ("data", "max_tokens", 2),
  ("eval", "limit", 0),
  ("eval", "loss_limit", 0),
  ("eval", "batch_size", 1),
  ("eval", "max_new_tokens", 1),
)


class Run(NamedTuple):
  """An adapted model, split for training."""

  model: model.Model  # its params are adapted
  trainable: Any  # the two partitions of those params
  frozen: Any
  meta: dict  # of the adapter's file, with the frozen partition's fingerprint

  def without_params(self) -> "Run":
    """The same without the trainable start, so that its memory is free."""
    return self._replace(trainable=None, model=self.model.replace(params=None))


class Data(NamedTuple):
  """What a run is trained and evaluated on."""

  batches: batches.Batches
  held_out: list[encode.Example]  # for the loss; empty if config.data.eval is ""
  problems: list[dict]  # for the task
  summary: list[str]


def enter_mesh(mesh):
  """Puts a mesh in force for the rest of the program; None is a single device."""
  if mesh is not None:
    jax.set_mesh(mesh)


def base(config) -> model.Model:
  """The model of `config.model`, not adapted, on the mesh in force."""
  return model.load(**config.model, seed=config.seed)


def check_options(config):
  """Refuses what is wrong whatever the model is, before one is read.

  Raises:
    InputError: counts below their least, no or unknown adapters, options that they do
      not have, an unknown task or answer rule.
  """
  for section, name, least in _LEAST:
    value = config[section][name]
    if value is not None and not value >= least:  # so is NaN
      raise InputError(f"{section}.{name} {value} is below {least}")
  if not 0 <= config.seed < 2**32:
    raise InputError(f"seed {config.seed} is not from 0 to 2**32 - 1")
  if not adapters.from_config(config.adapt):
    raise InputError("config.adapt is empty: name a method there, e.g. Full or LoRA")
  if config.eval.task:
    known = tasks.get(config.eval.task).RULES
    if config.eval.answer not in known:
      raise unknown("answer rule in eval.answer", config.eval.answer, known)


def check(config, base_model: model.Model, tx=None):
  """Refuses, before anything is written, what would only fail later.

  Args:
    config: of the run.
    base_model: its base.
    tx: its gradient transformation, which may not fit what the adapters train.

  Raises:
    InputError: adapters that do not fit the model; see `check_options`, too.
  """
  check_options(config)
  sharding.check(
    base_model.config,
    config.train.batch_size // config.train.accumulate,
    config.data.max_tokens,
    bool(config.model.quantize),
  )
  rules = adapters.from_config(config.adapt)
  adapters.match(base_model.params, rules)
  if tx is not None:
    jax.eval_shape(lambda p: _trainable_state(p, rules, tx), base_model.params)


def _trainable_state(params, rules, tx):
  params = adapters.adapt(params, rules, jax.random.key(0), gradients={})
  return tx.init(tree.partition(params, tree.trainable_mask(params))[0])


def adapt(config, base_model: model.Model, batches=None, start=None) -> Run:
  """The model adapted by `config.adapt`.

  Args:
    config: of the run.
    base_model: its base.
    batches: its training batches, where a method starts from their gradients.
    start: directory of an adapter of this run, for what is kept of its start; its theta
      is left to the caller. Give this or `batches`.
  Raises:
    InputError: an adapter that does not fit; see `adapters.match`.
  """
  rules = adapters.from_config(config.adapt)
  # Its own stream: the adapter's draws do not follow those of a random model.
  key = jax.random.fold_in(jax.random.key(config.seed), 1)
  gradients = _gradients(config, base_model, rules, batches) if batches else {}
  params = adapters.adapt(base_model.params, rules, key, gradients)
  if start is not None:
    params = adapter_files.load_kept(start, params)
  params = sharding.place(params)
  trainable, frozen = tree.partition(params, tree.trainable_mask(params))
  mark = adapter_files.fingerprint(frozen)
  meta = adapter_files.describe(params, key, mark) | dict(base=config.model.source)
  return Run(base_model.replace(params=params), trainable, frozen, meta)


def _gradients(config, base_model, rules, batches) -> dict:
  """Of the weights whose adapters start from them, each from as many as it says."""
  found = adapters.match(base_model.params, rules)
  needy = {path: a.batches for path, a in found.items() if a.needs_gradient}
  if not needy:
    return {}
  out = {}
  for count in sorted(set(needy.values())):
    console.note(f"gradient of {count} batches, from which the adapter starts ...")
    micro = (
      {k: x[i] for k, x in training.split(batches[n], config.train.accumulate).items()}
      for n in range(count)
      for i in range(config.train.accumulate)
    )
    paths = [path for path in needy if needy[path] == count]
    out |= training.gradients(base_model.transformer, base_model.params, paths, micro)
  return out


def load_run(workdir, config=None, base_model=None) -> model.Model:
  """The adapted model that a training run left: the adapter it kept, on its base.

  Args:
    workdir: a run's directory.
    config: its config, if parts were changed; None reads it.
    base_model: its base, if at hand.
  Raises:
    InputError: no run, not finished, or its base is not the one it was trained on.
  """
  config = config or workdirs.read_config(workdir)
  folder = pathlib.Path(workdir) / "adapter"
  if not folder.exists():
    raise InputError(
      f"{workdir} has no adapter/: its training is not finished; "
      "run the same train.py command to go on"
    )
  run = adapt(config, base_model or base(config), start=folder)
  trainable = adapter_files.load(folder, run.trainable, run.meta["fingerprint"])
  return run.model.replace(params=tree.combine(trainable, run.frozen))


def training_rows(config) -> list[dict]:
  """Rows of config.data.train; read before a model is, so that errors come soon."""
  return sources.read(config.data.train, config.data.limit)


def held_out_rows(config) -> list[dict]:
  """Rows of config.data.eval, [] without; those of a task are what it wants.

  Raises:
    InputError: rows that cannot be used; see `sources` and `tasks`.
  """
  if not config.data.eval:
    return []
  rows = sources.read(config.data.eval)
  if config.eval.task:
    for row in rows[: config.eval.limit or None]:
      tasks.get(config.eval.task).prompt(row)
  return rows


def data(config, base_model: model.Model, rows=None, held=None) -> Data:
  """Training batches, held-out examples and the task's problems.

  Args:
    config: of the run.
    base_model: whose tokenizer it is for.
    rows, held: of `training_rows` and `held_out_rows`; None reads them.
  Raises:
    InputError: data that cannot be used; see `sources` and `encode`.
  """
  d, tokenizer = config.data, base_model.tokenizer
  rows = training_rows(config) if rows is None else rows
  held = held_out_rows(config) if held is None else held
  train = encode.encode(rows, tokenizer, d.max_tokens, d.loss_on, d.train)
  longest = max(len(example.tokens) for example in train.examples)
  if longest > base_model.config.max_positions:
    raise InputError(
      f"{d.train} has an example of {longest} tokens, the model has "
      f"{base_model.config.max_positions} positions; lower data.max_tokens "
      f"({d.max_tokens}) to cut it"
    )
  largest = max(int(example.tokens.max()) for example in train.examples)
  if largest >= base_model.config.vocab_size:
    raise InputError(
      f"the tokenizer gives token {largest} "
      f"({tokenizer.core.id_to_token(largest)!r}), the model has "
      f"{base_model.config.vocab_size} embeddings; model and tokenizer do not match"
    )
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
    _check_prompts(config, base_model, problems)
  return Data(made, examples, problems, summary)


def _check_prompts(config, base_model: model.Model, problems):
  """Refuses problems that the task or the model's length has no room for."""
  if not config.eval.task:
    return
  texts = [tasks.get(config.eval.task).prompt(row) for row in problems]
  longest = max(len(base_model.tokenizer.encode(text, bos=True)) for text in texts)
  if longest + config.eval.max_new_tokens > base_model.config.max_positions:
    raise InputError(
      f"a prompt of {longest} tokens and eval.max_new_tokens "
      f"{config.eval.max_new_tokens} exceed the model's "
      f"{base_model.config.max_positions} positions; lower it, or leave such rows out"
    )


def held_out(config, tokenizer, rows):
  """(examples for the loss, problems for the task, summary) of `held_out_rows`."""
  d = config.data
  some = rows[: config.eval.loss_limit or None]
  held = encode.encode(some, tokenizer, d.max_tokens, d.loss_on, d.eval)
  return held.examples, rows[: config.eval.limit or None], held.summary(d.eval)
