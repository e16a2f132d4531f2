"""Preferences without a reward model: DPO and its relatives, ORPO and SimPO.

The answers of a prompt are packed into the same batch and scored by one forward pass. A
ranking of n answers counts as its n (n - 1) / 2 pairs, each with the same share.

Losses that compare with a reference take the base model for it: the same frozen arrays
without the adapter (`adapters.reference`), in a second pass of the same step that keeps
nothing for the backward pass. Dropout is off in that pass. `pair_losses` has the
formulas and their sources.
Axes: B rows, T tokens, S texts of a row, K distances in a ranking, see `groups`.
"""

import dataclasses

import jax.numpy as jnp

from jaxpeft import adapters
from jaxpeft.data import pairs, preferences
from jaxpeft.errors import InputError, unknown
from jaxpeft.objectives import cross_entropy, groups
from jaxpeft.objectives.base import Loss
from jaxpeft.objectives.pair_losses import KINDS, Side
from jaxpeft.transformer import decoder
from jaxpeft.transformer.attention import Where
from jaxpeft.transformer.decoder import Stream

WITHOUT = (
  "set objective.loss to 'orpo' or 'simpo', or objective.reference_free=True, or take "
  "a method that keeps the base, e.g. LoRA"
)

# The least value of options, and one that is too large.
_RANGES = (
  ("beta", 1e-9, 1e9),
  ("label_smoothing", 0, 0.5),
  ("nll", 0, 1e9),
  ("gamma", 0, 1e9),
)
_ORPO = ": ORPO has the chosen answer's loss with weight 1, and beta weighs the rest"


@dataclasses.dataclass(frozen=True)
class Preference:
  """A loss of the log-probabilities of better and worse answers, over the groups.

  Attributes:
    kind: the loss, a key of `pair_losses.KINDS`.
    beta: factor of log-probabilities; larger ones keep a DPO policy nearer to the base.
    label_smoothing: share of pairs that may be the wrong way round.
    nll: weight of the best answer's loss per token, which keeps its probability up
      [Pang et al. 2024, arXiv:2404.19733]. ORPO has it with weight 1.
    reference_free: compare log-probabilities themselves, as if the reference gave all
      answers of a prompt the same.
    gamma: the gap that "simpo" aims at.
  """

  kind: str = "sigmoid"
  beta: float = 0.1
  label_smoothing: float = 0.0
  nll: float = 0.0
  reference_free: bool = False
  gamma: float = 0.5

  def __post_init__(self):
    if self.kind not in KINDS:
      raise unknown("loss in objective.loss", self.kind, KINDS)
    for name, least, most in _RANGES:
      value = getattr(self, name)
      if not least <= value < most:
        raise InputError(f"objective.{name} {value} is not in [{least:g}, {most:g})")
    for field in dataclasses.fields(self):
      name, value = field.name, getattr(self, field.name)
      used = ("kind", "beta", *KINDS[self.kind].options)
      if name not in used and value != field.default:
        users = [repr(kind) for kind, found in KINDS.items() if name in found.options]
        why = _ORPO if name == "nll" else ""
        raise InputError(
          f"objective.{name} is {value!r}, but objective.loss={self.kind!r} does not "
          f"use it; {', '.join(users)} would. Leave it at {field.default!r}{why}"
        )

  @property
  def reference(self) -> bool:
    """Whether the loss compares with the base model."""
    return KINDS[self.kind].reference and not self.reference_free

  @property
  def random(self) -> bool:
    """False: nothing in the loss is left to chance."""
    return False

  @property
  def head(self) -> bool:
    """False: it needs logits only."""
    return False

  def checked(self, row, place: str):
    """Raises InputError unless a row has a preference; see `data.preferences`."""
    preferences.parse(row, place)

  def check_adapters(self, rules):
    """Refuses adapters without a reference, for a loss that needs one.

    Args:
      rules: {regex: adapter}.
    Raises:
      InputError: a method of which the base model cannot be had back.
    """
    for pattern, adapter in rules.items():
      if self.reference and not adapter.has_identity:
        where = adapters.no_reference(adapter, pattern)
        raise InputError(f"objective.loss={self.kind!r}: {where}; {WITHOUT}")

  def encode(
    self, rows, tokenizer, max_tokens: int, source: str, into=None, report=None
  ):
    """Groups of texts; see `data.pairs`."""
    return pairs.encode(rows, tokenizer, max_tokens, source, into, report)

  def batch(self, rows: list, max_tokens: int):
    """Arrays [B, max_tokens] of packed groups; see `data.pairs.to_arrays`.

    Raises:
      InputError: there are margins, and the loss has no place for them.
    """
    if not KINDS[self.kind].margin and any(x.value for row in rows for x in row):
      users = [repr(kind) for kind, found in KINDS.items() if found.margin]
      raise InputError(
        f"the data have margins, which objective.loss={self.kind!r} does not use; take "
        f"{', '.join(users)}, or remove `margin` from the rows"
      )
    return pairs.to_arrays(rows, max_tokens)

  def scored(self, tokens: int) -> int:
    """How many of a row's tokens have logits: all."""
    return tokens

  def loss(self, net, params, batch: dict, key=None) -> Loss:
    """The summed loss and the number of groups, and what `metrics` says."""
    del key
    losses = token_losses(net, params, batch)
    if not self.reference:
      return self.of_losses(losses, None, batch)
    try:
      base = adapters.reference(params)
    except InputError as e:
      raise InputError(f"{e}; {WITHOUT}") from e
    return self.of_losses(losses, token_losses(net, base, batch), batch)

  def of_losses(self, losses, reference, batch) -> Loss:
    """The loss of one batch, of the losses of its tokens.

    Args:
      losses: float32[B, T], -log p of each token's target.
      reference: the same of the reference; None is none.
      batch: arrays as `batch` makes them.
    Returns:
      The sums over groups of the mean loss of their pairs, and as metrics: accuracy
      (the share of pairs whose chosen answer has the larger score, strictly), margin
      (beta times the difference of scores) and the scores of the chosen and rejected
      answers. A score is log p; per token where the loss is; minus that of the
      reference where there is one.
    """
    kind, weights, segment = KINDS[self.kind], batch["weights"], batch["segment"]
    tokens = groups.sums(weights, segment)
    # The difference comes first: sums over many tokens would round it.
    gains = -losses if reference is None else reference - losses
    score = groups.sums(gains * weights, segment)
    group = groups.at_ends(batch["group"], batch)
    real, share = groups.pairs(group)
    chosen, rejected = map(
      Side,
      groups.both(score, real, -1.0),
      groups.both(tokens, real, 1.0),
    )
    margin, _ = groups.both(groups.at_ends(batch["margin"], batch), real)
    mean = lambda x: jnp.sum(jnp.where(real, x * share, 0))  # noqa: E731
    total = mean(kind.of(self, chosen, rejected, margin))
    first = (group > 0) & (groups.later(group, -1) != group)
    metrics = {}
    nll = 1.0 if self.kind == "orpo" else self.nll
    if nll:
      per_token = groups.sums(losses * weights, segment) / jnp.maximum(tokens, 1)
      metrics["nll"] = jnp.sum(jnp.where(first, per_token, 0))
      total += nll * metrics["nll"]
    better, worse = (x.mean if kind.per_token else x.score for x in (chosen, rejected))
    name = "change" if self.reference else "logp"
    metrics |= {
      "accuracy": mean(better > worse),
      "margin": self.beta * mean(better - worse),
      f"chosen_{name}": mean(better),
      f"rejected_{name}": mean(worse),
    }
    return Loss(total, jnp.sum(first, dtype=jnp.float32), metrics)


def token_losses(net, params, batch):
  """float32[B, T]: -log p of each token's target; 0 weights have no meaning there."""
  where = Where(batch["position"], batch["segment"])
  hidden = decoder.hidden(net, params, Stream(batch["tokens"], where))
  to_logits = decoder.to_logits(net, params)
  return cross_entropy.of_tokens(to_logits, hidden, batch["targets"])
