"""The contract of an objective, which defines the loss that is trained on the data.

An objective is a frozen dataclass of options, found by name (`config.objective.name`).
It turns rows of its data format into examples, examples into arrays, and arrays into a
loss. Planning, training and evaluation all go through these functions, so that a new
objective is one file and one line in the package's registry.
"""

from typing import Any, NamedTuple, Protocol

import jax

from jaxpeft.data.encode import Encoded


class Loss(NamedTuple):
  """Sums over a batch: those of microbatches and devices add up to the whole's."""

  total: jax.Array  # float32[]: the loss, summed over supervised tokens, pairs, ...
  weight: jax.Array  # float32[]: the divisor of the total, e.g. supervised tokens
  metrics: dict[str, jax.Array]  # name -> float32[], divided by the weight as well


class Objective(Protocol):
  """What every objective provides."""

  @property
  def random(self) -> bool:
    """Whether the training loss needs a PRNG key."""
    ...

  @property
  def head(self) -> bool:
    """Whether the model gets a scalar head, which is trained in full."""
    ...

  def checked(self, row, place: str):
    """Raises InputError, which names the place, unless a row has one of its forms."""
    ...

  def encode(
    self, rows, tokenizer, max_tokens: int, source: str, into=None, report=None
  ) -> Encoded:
    """Examples of rows.

    Args:
      rows: dicts, or `data.files.Placed` rows one after another.
      tokenizer: a `Tokenizer`.
      max_tokens: longer examples are cut at the end.
      source: name of the data, for messages.
      into: takes the examples, see `data.encode`; None holds them in memory.
      report: called with the last row that was tokenized, from time to time.
    Raises:
      InputError: a row that is not in the objective's format.
    """
    ...

  def batch(self, rows: list, max_tokens: int) -> dict[str, Any]:
    """Arrays [B, ...] of rows of examples; planning takes its shapes from here."""
    ...

  def scored(self, tokens: int) -> int:
    """How many of a row's tokens have logits while training; for planning."""
    ...

  def loss(self, net, params, batch: dict, key=None) -> Loss:
    """The loss of one batch.

    Args:
      net: the `Transformer`.
      params: its parameters, adapted.
      batch: arrays as `batch` makes them.
      key: PRNG key for the random parts of the training loss. None means evaluation:
        without noise, and over all tokens.
    """
    ...
