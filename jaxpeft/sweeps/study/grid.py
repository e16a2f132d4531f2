"""Which models a study trains, and on how much text: sizes, budgets and seeds."""

import functools
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpeft import tree
from jaxpeft.errors import InputError
from jaxpeft.sweeps.study.source import Source
from jaxpeft.transformer.config import ModelConfig
from jaxpeft.transformer.decoder import Transformer

HEADS = 4
FEWEST = 20  # steps of a run: fewer are mostly warm-up
_MOST_STEPS = 10**7  # of a run
_MOST_RUNS, _MOST_WIDTH, _MOST_DEPTH = 10_000, 4096, 128


class Size(NamedTuple):
  """The shape of a model."""

  width: int
  depth: int

  @property
  def name(self) -> str:
    """As in `scaling.sizes`."""
    return f"{self.width}x{self.depth}"


class Run(NamedTuple):
  """One model that is trained on one amount of text."""

  name: str
  size: Size
  seed: int
  steps: int
  budget: float  # FLOPs; those of the steps differ a little


def check(config):
  """Raises InputError unless the options describe a study."""
  s = config.scaling
  if not s.sizes or not s.budgets:
    raise InputError(
      "the config describes no study: give scaling.sizes, e.g. ('16x2', '32x2'), and "
      "scaling.budgets, e.g. (1e9, 2e9)"
    )
  known = dict(seeds=(1, 1000), held_out=(1, 10**6), tuned=(1, 1000))
  for name, (least, most) in known.items():
    if not least <= s[name] <= most:
      raise InputError(f"scaling.{name} {s[name]} is not from {least} to {most}")
  for name in ("budgets", "rates", "tokens_per_parameter"):
    for x in s[name]:
      if isinstance(x, bool) or not isinstance(x, int | float) or not 0 < x < math.inf:
        raise InputError(f"scaling.{name}: {x!r} is not a finite number above 0")
  if not s.rates:
    raise InputError("scaling.rates is empty: give learning rates, e.g. (3e-3, 1e-2)")
  if len(set(s.rates)) < len(s.rates):
    raise InputError(f"scaling.rates {tuple(s.rates)} has a rate twice")
  if len(s.tokens_per_parameter) != 2:
    raise InputError(
      f"scaling.tokens_per_parameter {s.tokens_per_parameter} are not two numbers: the "
      "least and the most tokens of text for each parameter"
    )
  if not 0 < s.tune_tokens < math.inf:
    raise InputError(f"scaling.tune_tokens {s.tune_tokens} is not above 0 and finite")
  text = source(config)
  if config.data.max_tokens < text.order:
    raise InputError(
      f"data.max_tokens {config.data.max_tokens} is below {text.order}, the tokens "
      "that the next one depends on (scaling.text.orders)"
    )
  if not 1 <= config.train.batch_size * config.data.max_tokens <= 2**20:
    raise InputError(
      f"train.batch_size {config.train.batch_size} times data.max_tokens "
      f"{config.data.max_tokens} is not from 1 to {2**20} tokens"
    )
  if len(s.sizes) * len(s.budgets) * s.seeds > _MOST_RUNS:
    raise InputError(f"the study has more than {_MOST_RUNS} runs; lower scaling.seeds")
  for name, some in (("budgets", runs(config)), ("tune_tokens", tuning(config))):
    if (longest := max((one.steps for one in some), default=0)) > _MOST_STEPS:
      raise InputError(
        f"scaling.{name} give a run of {longest:.3g} steps, more than {_MOST_STEPS:,}; "
        "lower them, or raise train.batch_size"
      )


def source(config) -> Source:
  """The text of a study."""
  fields: dict[str, Any] = dict(config.scaling.text)
  fields["orders"] = tuple(fields["orders"])
  return Source(**fields)


def sizes(config) -> list[Size]:
  """The shapes of a study's models, in the order of `scaling.sizes`.

  Raises:
    InputError: one is no WIDTHxDEPTH, is there twice, is too large, or has a width that
      is no multiple of 8 (four heads of an even size).
  """
  found = []
  for text in config.scaling.sizes:
    match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", str(text))
    if not match:
      raise InputError(f"scaling.sizes: {text!r} is no WIDTHxDEPTH, e.g. 32x2")
    size = Size(int(match[1]), int(match[2]))
    if size.width % (2 * HEADS) or not 0 < size.width <= _MOST_WIDTH:
      raise InputError(
        f"scaling.sizes: the width {size.width} of {text} is no multiple of "
        f"{2 * HEADS} up to {_MOST_WIDTH}; there are {HEADS} heads"
      )
    if not 0 < size.depth <= _MOST_DEPTH:
      raise InputError(
        f"scaling.sizes: the depth of {text} is not from 1 to {_MOST_DEPTH}"
      )
    if size in found:
      raise InputError(f"scaling.sizes: {text} is there twice")
    found.append(size)
  return found


def transformer(config, size: Size) -> Transformer:
  """A Llama-shaped model whose head is its embedding, without weights.

  So every parameter except those of norms is used in exactly one product per token. A
  training step takes 6 N FLOPs per token, and those of attention.
  """
  shape = ModelConfig(
    family="llama", vocab_size=config.scaling.text.vocabulary, width=size.width,
    depth=size.depth, heads=HEADS, kv_heads=HEADS, head_dim=size.width // HEADS,
    ff=3 * size.width, max_positions=config.data.max_tokens, rms_eps=1e-5, tied=True,
  )  # fmt: skip
  return Transformer(shape, (), "none", "float32")


def parameters(config, size: Size) -> tuple[int, int]:
  """(all parameters, those that are not the embedding) of a model."""
  return _parameters(transformer(config, size).config)


@functools.cache
def _parameters(shape: ModelConfig) -> tuple[int, int]:
  net = Transformer(shape)
  tokens = jnp.zeros((1, 2), jnp.int32)
  shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), tokens)["params"])
  counts = {name: math.prod(x.shape) for name, x in tree.flatten(shapes).items()}
  total = sum(counts.values())
  return total, total - counts["embed"]


def runs(config) -> list[Run]:
  """All runs of a study, each size from the smallest budget to the largest.

  A run has the number of steps whose 6 N D FLOPs come nearest to its budget. Left out
  are runs with fewer than `FEWEST` steps, and runs whose tokens per parameter are
  outside `scaling.tokens_per_parameter`.

  Raises:
    InputError: nothing is left.
  """
  s, found = config.scaling, []
  low, high = s.tokens_per_parameter
  per_step = config.train.batch_size * config.data.max_tokens
  for size in sizes(config):
    n, _ = parameters(config, size)
    for budget in sorted(s.budgets):
      steps = round(budget / (6 * n * per_step))
      if steps < FEWEST or not low <= budget / (6 * n * n) <= high:
        continue
      for seed in range(s.seeds):
        name = f"{size.name}-{budget:.4g}-s{seed}"
        found.append(Run(name, size, seed, steps, budget))
  if not found:
    raise InputError(
      f"no run is left: with scaling.budgets {tuple(s.budgets)} all have fewer than "
      f"{FEWEST} steps, or not {low:g} to {high:g} tokens per parameter "
      "(scaling.tokens_per_parameter)"
    )
  names = [run.name for run in found]
  if len(set(names)) < len(names):
    raise InputError("scaling.budgets has two that are equal to four digits")
  return found


def tuning(config) -> list[Run]:
  """The runs that choose learning rates: one for each of the first sizes.

  They use a seed of their own, so that their text is not that of the study.
  """
  if len(config.scaling.rates) == 1:
    return []
  per_step = config.train.batch_size * config.data.max_tokens
  found = []
  for size in sizes(config)[: config.scaling.tuned]:
    n, _ = parameters(config, size)
    steps = max(FEWEST, round(config.scaling.tune_tokens * n / per_step))
    found.append(Run(f"{size.name}-tune", size, config.scaling.seeds, steps, 0.0))
  return found
