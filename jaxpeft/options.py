"""Checks of a run's options that need neither its model nor its data."""

from jaxpeft import adapters, objectives
from jaxpeft.errors import InputError, unknown
from jaxpeft.evaluation import tasks
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
  ("eval", "batch_size", 1),
  ("eval", "max_new_tokens", 1),
)


def check(config):
  """Refuses what is wrong whatever the model is, before one is read.

  Raises:
    InputError: counts below their least value, no adapter or an unknown one, options
      that it does not have, an unknown objective, task or answer rule.
  """
  for section, name, least in _LEAST:
    value = config[section][name]
    if value is not None and not value >= least:  # refuses NaN, too
      raise InputError(f"{section}.{name} {value} is below {least}")
  if not 0 <= config.seed < 2**32:
    raise InputError(f"seed {config.seed} is not from 0 to 2**32 - 1")
  if not adapters.from_config(config.adapt):
    raise InputError("config.adapt is empty: name a method there, e.g. Full or LoRA")
  objectives.from_config(config)
  sampling(config)
  if config.eval.task:
    known = tasks.get(config.eval.task).RULES
    if config.eval.answer not in known:
      raise unknown("answer rule in eval.answer", config.eval.answer, known)


def sampling(config) -> Sampling:
  """How answers are drawn."""
  e = config.eval
  return Sampling(e.temperature, e.top_k, e.top_p)
