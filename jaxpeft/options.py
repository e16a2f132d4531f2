"""Checks of a run's options that need neither its model nor its data."""

from jaxpeft import adapters, objectives
from jaxpeft.errors import InputError
from jaxpeft.evaluation import judges, strategies, tasks
from jaxpeft.generation.sampling import Sampling

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
  ("eval", "batch_size", 0),
  ("eval", "max_new_tokens", 1),
  ("eval", "shots", 0),
  ("eval", "drafts", 0),
)

# The least and the largest value of other numbers.
_RANGES = (
  ("seed", 0, 2**32 - 1),
  ("train.neftune", 0, 1e9),
  ("train.epochs", 0, 1e9),
  ("optim.lr", 0, 1e9),
  ("optim.warmup", 0, 1),
  ("optim.final_lr", 0, 1e9),
  ("optim.clip_norm", 0, 1e30),
  ("optim.weight_decay", 0, 1e9),
  ("tokens.fraction", 0, 1),
  ("tokens.always", 0, 2**31),
)


def check(config):
  """Refuses what is wrong whatever the model is, before one is read.

  Raises:
    InputError: counts below their least value, no adapter or an unknown one, options
      that it does not have, an unknown objective, task or answer rule.
  """
  if config.scaling.sizes:
    raise InputError(
      "the config is of a study (scaling.sizes is set), not of a run: use `python -m "
      "jaxpeft scaling run --config=FILE`"
    )
  for section, name, least in _LEAST:
    value = config[section][name]
    if value is not None and not value >= least:  # refuses NaN, too
      raise InputError(f"{section}.{name} {value} is below {least}")
  for key, least, most in _RANGES:
    value = _at(config, key)
    if value is not None and not least <= value <= most:
      raise InputError(f"{key} {value} is not from {least} to {most}")
  t = config.train
  if t.batch_size % t.accumulate:
    raise InputError(
      f"train.accumulate {t.accumulate} does not divide train.batch_size {t.batch_size}"
    )
  if not adapters.from_config(config.adapt):
    raise InputError("config.adapt is empty: name a method there, e.g. Full or LoRA")
  objectives.from_config(config)
  sampling(config)
  if config.eval.strategy:
    strategies.get(config.eval.strategy)
  strategies.options(config.eval)
  judges.check(config.eval.prefer)
  if config.eval.task:
    tasks.rule(tasks.make(config.eval.task, config.eval), config.eval.answer)


def _at(config, key: str):
  for name in key.split("."):
    config = config[name]
  return config


def sampling(config) -> Sampling:
  """How answers are drawn."""
  e = config.eval
  return Sampling(e.temperature, e.top_k, e.top_p, e.min_p, e.repetition_penalty)
