"""Numbers of a config that no run could have are refused with their key."""

import pytest

from jaxpeft import config_file, options
from jaxpeft.errors import InputError
from jaxpeft.planning import search, table

BAD = {
  "train.steps": ("0", "-1"),
  "train.epochs": ("-1.0", "nan", "inf"),
  "train.batch_size": ("0", "-1"),
  "train.accumulate": ("0", "-2", "3", "32"),  # of 16 rows
  "train.neftune": ("-1.0", "nan", "inf"),
  "train.log_every": ("0",),
  "train.eval_every": ("-1",),
  "train.save_every": ("-1",),
  "train.patience": ("-1",),
  "data.limit": ("0", "-5"),
  "data.max_tokens": ("1", "-64"),
  "optim.lr": ("-1.0", "nan", "inf"),
  "optim.warmup": ("-0.1", "1.5", "nan"),
  "optim.final_lr": ("-1.0", "nan"),
  "optim.clip_norm": ("-1.0", "nan"),
  "optim.weight_decay": ("-1.0", "inf"),
  "tokens.fraction": ("-0.5", "1.5", "nan"),
  "tokens.always": ("-1",),
  "eval.limit": ("-1",),
  "eval.loss_limit": ("-1",),
  "eval.batch_size": ("-1",),
  "eval.max_new_tokens": ("0",),
  "seed": ("-1", "4294967296"),
}
CASES = [(key, value) for key, values in BAD.items() for value in values]


def load(key, value):
  return config_file.load("configs/lora.py", [f"--config.{key}={value}"])


@pytest.mark.parametrize(("key", "value"), CASES)
def test_a_number_out_of_range_is_refused(key, value):
  with pytest.raises(InputError, match=key):
    options.check(load(key, value))


@pytest.mark.parametrize(
  ("key", "value"),
  [("train.batch_size", "-1"), ("train.batch_size", "0"), ("train.accumulate", "32")],
)
def test_no_memory_is_planned_for_a_batch_that_cannot_be(key, value):
  config = load(key, value)
  with pytest.raises(InputError, match=key):
    table.plans(dict(x=config), ["cpu"])
  with pytest.raises(InputError, match=key):
    search.largest(config, "cpu", 10**9, "rows")


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("eval.extract", "(", "no regular expression"),
    ("eval.normalize", "caps", "eval.normalize"),
    ("eval.choice", "vote", "eval.choice"),
    ("eval.labels", "one", "eval.labels"),
    ("eval.answer", "flexible", "eval.answer"),  # choice by likelihood has no such rule
    ("eval.task", "choise", "Did you mean 'choice'"),
  ],
)
def test_options_of_a_task_are_refused_before_a_model_is_read(key, value, message):
  config = load("eval.task", "choice").unlock()
  section, name = key.split(".")
  config[section][name] = value
  with pytest.raises(InputError, match=message):
    options.check(config)


def test_defaults_and_as_many_rows_as_memory_holds_pass():
  options.check(load("eval.batch_size", "0"))
  config = load("eval.task", "exact").unlock()
  config.eval.answer = "flexible"
  options.check(config)
