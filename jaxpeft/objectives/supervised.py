"""Next-token cross-entropy on supervised tokens: fine-tuning, and its two variations.

NEFTune adds noise to the embeddings, and token selection lets only some tokens of each
row carry gradient; both are options of the objective and apply while training only.
"""

import dataclasses
import functools
import math

import jax

from jaxpeft.data import batches, encode, formats
from jaxpeft.errors import InputError
from jaxpeft.objectives import cross_entropy, token_selection
from jaxpeft.objectives.base import Loss
from jaxpeft.objectives.token_selection import Passes, Selection
from jaxpeft.transformer import decoder
from jaxpeft.transformer.attention import Where
from jaxpeft.transformer.decoder import Stream


@dataclasses.dataclass(frozen=True)
class Supervised:
  """Mean -log p(next token) over the supervised tokens, in nats.

  Attributes:
    loss_on: which tokens are supervised: "completion", or "all".
    neftune: alpha of uniform noise on the embeddings, whose size is alpha / sqrt(T D);
      0 is no noise. Source: Jain et al. 2023, arXiv:2310.05914.
    selection: which tokens carry gradient; the default is all.
  """

  loss_on: str = "completion"
  neftune: float = 0.0
  selection: Selection = Selection()

  def __post_init__(self):
    if self.loss_on not in ("completion", "all"):
      raise InputError(
        f"data.loss_on is {self.loss_on!r}; it must be 'completion' or 'all'"
      )

  @property
  def random(self) -> bool:
    """Whether the training loss needs a PRNG key."""
    return bool(self.neftune) or self.selection.fraction < 1

  @property
  def head(self) -> bool:
    """False: it needs logits only."""
    return False

  def checked(self, row, place: str):
    """Raises InputError unless a row has an answer to learn; see `data.formats`."""
    form, _ = formats.checked(row, place)
    if form in formats.PREFERENCES:
      raise InputError(f"{place}: {formats.preference(form)}")

  def encode(
    self, rows, tokenizer, max_tokens: int, source: str, into=None, report=None
  ):
    """Examples of prompts and completions, conversations, ...; see `data.formats`."""
    return encode.encode(
      rows, tokenizer, max_tokens, self.loss_on, source, into, report
    )

  def batch(self, rows: list, max_tokens: int):
    """Arrays [B, max_tokens] of packed examples; see `data.batches.to_arrays`."""
    return batches.to_arrays(rows, max_tokens)

  def scored(self, tokens: int) -> int:
    """How many of a row's tokens have logits: those that carry gradient."""
    return self.selection.count(tokens)

  def loss(self, net, params, batch: dict, key=None) -> Loss:
    """The summed cross-entropy and the number of supervised tokens."""
    if key is None:
      return loss(net, params, batch)
    batch = dict(batch)
    if self.neftune:
      shape = (*batch["tokens"].shape, net.config.width)
      size = self.neftune / math.sqrt(shape[1] * shape[2])
      batch["noise"] = size * jax.random.uniform(key, shape, minval=-1.0)
    if self.selection.fraction == 1:
      return loss(net, params, batch)
    passes = Passes(
      losses=functools.partial(token_losses, net, params, batch),
      attention=functools.partial(token_attention, net, params, batch),
    )
    own = jax.random.fold_in(key, 1)
    return loss(net, params, *token_selection.split(self.selection, own, batch, passes))


def loss(net, params, batch, constant=None) -> Loss:
  """The summed loss of one batch in nats, and its supervised tokens.

  Args:
    net: the `Transformer`.
    params: its parameters.
    batch: arrays [B, T] of `data.batches`; if "noise" [B, T, D] is among them, it is
      added to the embeddings.
    constant: like `batch`: tokens of the same rows that are seen and carry no gradient.
  """
  other = None if constant is None else _stream(constant)
  hidden = decoder.hidden(net, params, _stream(batch), other)
  total, count = cross_entropy.cross_entropy(
    decoder.to_logits(net, params), hidden, batch["targets"], batch["weights"]
  )
  return Loss(total, count, {})


def token_losses(net, params, batch):
  """The loss of each token, float32[B, T], without a gradient."""
  params = jax.lax.stop_gradient(params)
  hidden = decoder.hidden(net, params, _stream(batch))
  to_logits = decoder.to_logits(net, params)
  return cross_entropy.of_tokens(to_logits, hidden, batch["targets"])


def token_attention(net, params, batch):
  """How much attention each token receives, float32[B, T], summed over the layers."""
  params = jax.lax.stop_gradient(params)
  _, kept = decoder.run(net, params, _stream(batch), keep="attention")
  return sum(group.sum(0) for group in kept)


def _stream(batch) -> Stream:
  where = Where(batch["position"], batch["segment"])
  return Stream(batch["tokens"], where, batch.get("noise"))
