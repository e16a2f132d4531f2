"""Token selection (TokenTune): train on a few tokens of each row to save memory.

Ordinary training saves the activations of every token for the backward pass. Token
selection saves them for k of a row's T tokens only:
1. At every step, score the tokens of each row and choose the k highest (`split`).
2. Run the chosen and the remaining tokens through the model as two streams
   (`layers.layer`). Each stream attends to the other, so every hidden state equals
   that of ordinary training.
3. Stop the gradient at the remaining tokens. The backward pass then needs no
   activations of them except the keys and values that the chosen tokens attend to.
4. Take the loss over the chosen tokens that are supervised.
The gradient is therefore an approximation of the ordinary one: it omits the losses of
the remaining tokens, and every path through their hidden states. If a step chooses no
supervised token, its loss and gradient are 0.

The reference code always chooses the last token of an example. We do not, because it
predicts nothing and no other token attends to it.
Source: Simoulin et al. 2024, "Memory-Efficient Fine-Tuning of Transformers via Token
Selection", and its reference code. Axes: B batch, T tokens, k chosen tokens.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpeft.errors import InputError, unknown


class Passes(NamedTuple):
  """Forward passes, without a gradient, that a choice may call to score the tokens."""

  losses: Callable  # () -> float[B, T], the loss of each token
  attention: Callable  # () -> float[B, T], received from the tokens that see it


NONE_SUPERVISED = (
  "no token chosen so far is supervised, so nothing is learned: set "
  "tokens.choose='completion', a larger tokens.fraction, or data.loss_on='all'"
)
# name -> function(key, batch, passes) -> scores float[B, T]; the highest are chosen.
CHOICES: dict[str, Callable] = {
  "random": lambda key, batch, passes: _noise(key, batch),
  "completion": lambda key, batch, passes: _noise(key, batch) + batch["weights"],
  "prefix": lambda key, batch, passes: -batch["position"].astype(jnp.float32),
  "loss": lambda key, batch, passes: passes.losses() * (batch["weights"] > 0),
  "attention": lambda key, batch, passes: passes.attention() * (batch["weights"] > 0),
}


@dataclasses.dataclass(frozen=True)
class Selection:
  """Options of token selection: how many tokens carry gradient, and which.

  Attributes:
    fraction: the share of a row's tokens, padding included, that carry gradient; 1 is
      ordinary training.
    choose: a key of `CHOICES`, or a function like those in it:
      "random": uniformly among all tokens.
      "completion": uniformly among the supervised tokens; if these are fewer than k,
        then also among the others.
      "prefix": the first tokens of each example. Those of a prompt have no loss.
      "loss": the supervised tokens with the highest loss; costs a forward pass.
      "attention": the supervised tokens that receive the most attention, averaged over
        the tokens that see them and summed over layers and heads; costs a forward pass.
    always: this many tokens at the start of each example are chosen first.
    reweigh: whether to multiply a row's losses by (its supervised tokens / its chosen
      supervised tokens), so that each row has the weight of ordinary training.
  """

  fraction: float = 1.0
  choose: str | Callable = "random"
  always: int = 1
  reweigh: bool = False

  def __post_init__(self):
    if not 0 < self.fraction <= 1:
      raise InputError(f"tokens.fraction {self.fraction} is not in (0, 1]; 1 is off")
    if isinstance(self.choose, str) and self.choose not in CHOICES:
      raise unknown("tokens.choose", self.choose, CHOICES)
    if self.always < 0:
      raise InputError(f"tokens.always {self.always} is below 0; 0 is off")

  def count(self, tokens: int) -> int:
    """k, the number of tokens that carry gradient in a row of `tokens` tokens."""
    return max(1, math.ceil(round(self.fraction * tokens, 6)))


class Split(NamedTuple):
  """A batch split by token; `constant` is None if all tokens were chosen."""

  chosen: dict[str, jax.Array]  # [B, k, ...], in their original order
  constant: dict[str, jax.Array] | None  # [B, T - k, ...], likewise


def split(selection: Selection, key, batch: dict, passes: Passes) -> Split:
  """The chosen and the remaining tokens of a batch.

  Args:
    selection: how many tokens to choose, and which.
    key: PRNG key of this step's choice.
    batch: arrays [B, T, ...]: those of `data.batches`, and possibly others.
    passes: the forward passes that some of `CHOICES` need.
  """
  length = batch["tokens"].shape[1]
  k = selection.count(length)
  if k >= length:
    return Split(batch, None)
  choose = selection.choose
  score = (CHOICES[choose] if isinstance(choose, str) else choose)(key, batch, passes)
  score = jnp.where(batch["position"] < selection.always, jnp.inf, score)
  score = jnp.where(batch["segment"] == 0, -jnp.inf, score)  # padding comes last
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
  """Uniform in [0, 1), so that adding a weight of 1 puts a token above all others."""
  return jax.random.uniform(key, batch["tokens"].shape)
