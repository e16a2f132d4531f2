"""Token selection: of each row some tokens carry gradient, and the others are constant.

Source: Simoulin et al. 2024, "Memory-Efficient Fine-Tuning of Transformers via Token
Selection" (TokenTune), and its reference code. The constant tokens run through the same
layers (`layers.layer`), so that every hidden state is that of ordinary training; they
only let no gradient pass, and need no memory until the backward pass. The loss is that
of the chosen tokens that are supervised.

Unlike the reference, the last token of an example is not forced in: it predicts
nothing and nothing sees it. A batch without any chosen supervised token has a loss and
gradient of 0.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpeft.errors import InputError, unknown


class Passes(NamedTuple):
  """Forward passes without a gradient; each costs what it costs only where called."""

  losses: Callable  # () -> float[B, T], of every token
  attention: Callable  # () -> float[B, T], that it gets of those that see it


NONE_SUPERVISED = (
  "no token that was chosen so far has a loss, so nothing is learned: set "
  "tokens.choose='completion', a larger tokens.fraction, or data.loss_on='all'"
)
# name -> function(key, batch, passes) -> float[B, T]; a row's highest are chosen.
CHOICES: dict[str, Callable] = {
  "random": lambda key, batch, passes: _noise(key, batch),
  "completion": lambda key, batch, passes: _noise(key, batch) + batch["weights"],
  "prefix": lambda key, batch, passes: -batch["position"].astype(jnp.float32),
  "loss": lambda key, batch, passes: passes.losses() * (batch["weights"] > 0),
  "attention": lambda key, batch, passes: passes.attention() * (batch["weights"] > 0),
}


@dataclasses.dataclass(frozen=True)
class Selection:
  """Which tokens carry gradient.

  Attributes:
    fraction: of the tokens of a row, padding included; 1 is all: ordinary training.
    choose: a key of `CHOICES`, or such a function. "random" is uniform, "completion"
      random among the supervised tokens and then among the others, "prefix" the first
      of each example (without loss where they are a prompt's), "loss" the supervised
      ones of the highest loss, "attention" those that get the most of it, from the
      tokens that see them, over all layers and heads.
    always: the first so many tokens of every example are chosen before all others.
    reweigh: scales the losses of a row by its supervised tokens, over those that were
      chosen, so that rows weigh in the loss as in ordinary training.
  """

  fraction: float = 1.0
  choose: str | Callable = "random"
  always: int = 1
  reweigh: bool = False

  def __post_init__(self):
    if not 0 < self.fraction <= 1:
      raise InputError(f"tokens.fraction {self.fraction} is not in (0, 1]; 1 is all")
    if isinstance(self.choose, str) and self.choose not in CHOICES:
      raise unknown("tokens.choose", self.choose, CHOICES)
    if self.always < 0:
      raise InputError(f"tokens.always {self.always} is below 0")

  def count(self, tokens: int) -> int:
    """How many of a row's tokens carry gradient."""
    return max(1, math.ceil(round(self.fraction * tokens, 6)))


class Split(NamedTuple):
  """A batch in two; `constant` is None where all tokens were chosen."""

  chosen: dict[str, jax.Array]  # [B, k, ...], in their order
  constant: dict[str, jax.Array] | None  # [B, T - k, ...], in theirs


def split(selection: Selection, key, batch: dict, passes: Passes) -> Split:
  """Chooses tokens of a batch.

  Args:
    selection: which.
    key: of this step's choice.
    batch: arrays [B, T, ...], those of `data.batches` among them.
    passes: see `CHOICES`.
  """
  length = batch["tokens"].shape[1]
  k = selection.count(length)
  if k >= length:
    return Split(batch, None)
  choose = selection.choose
  score = (CHOICES[choose] if isinstance(choose, str) else choose)(key, batch, passes)
  score = jnp.where(batch["position"] < selection.always, jnp.inf, score)
  score = jnp.where(batch["segment"] == 0, -jnp.inf, score)  # padding is the last
  _, chosen = jax.lax.top_k(score, k)
  rows = jnp.arange(len(chosen))[:, None]
  is_chosen = jnp.zeros(score.shape, bool).at[rows, chosen].set(True)
  order = jnp.argsort(~is_chosen, axis=1, stable=True)

  def take(index):
    return {
      name: jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), 1)
      for name, x in batch.items()
    }

  picked = take(order[:, :k])
  if selection.reweigh:
    total = batch["weights"].sum(1, keepdims=True)
    some = picked["weights"].sum(1, keepdims=True)
    picked["weights"] *= total / jnp.where(some > 0, some, 1)
  return Split(picked, take(order[:, k:]))


def _noise(key, batch):
  """Uniform in [0, 1): below the weight of a supervised token."""
  return jax.random.uniform(key, batch["tokens"].shape)
