"""Reward models: a scalar for every text, so that better answers have larger ones.

A linear head reads the hidden state of a text's last token. The probability that answer
a is preferred to b is sigmoid(r_a - r_b) [Bradley and Terry 1952]; that of a ranking is
the product of softmaxes, each over the answers that remain [Plackett 1975; Luce 1959].
For two answers these are equal. The loss is -log p of what was preferred.
Axes: B rows, T tokens, D width, S texts of a row, counted from 1 (0 is padding).
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxpeft.data import pairs, preferences
from jaxpeft.errors import InputError, unknown
from jaxpeft.objectives import groups
from jaxpeft.objectives.base import Loss
from jaxpeft.objectives.head import HEAD as HEAD
from jaxpeft.objectives.head import score
from jaxpeft.transformer import decoder
from jaxpeft.transformer.attention import Where
from jaxpeft.transformer.decoder import Stream

POOLS = ("last", "hf")
_DISTANCES = range(1, preferences.MOST)  # in a group, from one text to a later one


@dataclasses.dataclass(frozen=True)
class Reward:
  """-log p of the preferred order of answers, in nats, averaged over the groups.

  Attributes:
    label_smoothing: share of groups whose order may be reversed; their reversed order
      has this weight in the loss.
    center: weight of (the sum of a group's rewards)^2, which keeps rewards near 0
      [Eisenstein et al. 2023, arXiv:2312.09244].
    pool: the token that is scored. "last" is the last one of the text. "hf" is the last
      one that is no padding token, as Hugging Face's models do: where padding and end
      of text are one token, that is the token before the end.
  """

  label_smoothing: float = 0.0
  center: float = 0.0
  pool: str = "last"

  def __post_init__(self):
    if not 0 <= self.label_smoothing < 0.5:
      raise InputError(
        f"objective.label_smoothing {self.label_smoothing} is not in [0, 0.5)"
      )
    if not 0 <= self.center < 1e9:
      raise InputError(f"objective.center {self.center} is not in [0, 1e9)")
    if self.pool not in POOLS:
      raise unknown("objective.pool", self.pool, POOLS)

  @property
  def random(self) -> bool:
    """False: nothing in the loss is left to chance."""
    return False

  @property
  def head(self) -> bool:
    """True: the scalar head."""
    return True

  def checked(self, row, place: str):
    """Raises InputError unless a row has a preference; see `data.preferences`."""
    preferences.parse(row, place)

  def encode(
    self, rows, tokenizer, max_tokens: int, source: str, into=None, report=None
  ):
    """Groups of texts; see `data.pairs`."""
    trim = padding(tokenizer) if self.pool == "hf" else None
    return pairs.encode(rows, tokenizer, max_tokens, source, into, report, trim)

  def batch(self, rows: list, max_tokens: int):
    """Arrays [B, max_tokens] of packed groups; see `data.pairs.to_arrays`."""
    return pairs.to_arrays(rows, max_tokens)

  def scored(self, tokens: int) -> int:
    """0: no token has logits."""
    return 0

  def loss(self, net, params, batch: dict, key=None) -> Loss:
    """The summed loss, the number of groups, and accuracy, margin and mean reward."""
    del key
    group, margin = (groups.at_ends(batch[name], batch) for name in ("group", "margin"))
    scores = rewards(net, params, batch)
    return of_scores(scores, group, margin, self.label_smoothing, self.center)


def padding(tokenizer) -> int | None:
  """The id of the padding token as TRL has it: the end of text if there is no other."""
  own = tokenizer.pad_id
  return own if own is not None else next(iter(tokenizer.eos_ids), None)


def rewards(net, params, batch):
  """float32[B, S]: the head on the hidden states at the ends of the texts."""
  where = Where(batch["position"], batch["segment"])
  hidden = decoder.hidden(net, params, Stream(batch["tokens"], where))
  return groups.at_ends(score(params, hidden), batch)


def of_scores(
  scores, group, margin, label_smoothing: float = 0.0, center: float = 0.0
) -> Loss:
  """The loss of the rewards of packed texts.

  Args:
    scores: float32[B, S].
    group: int32[B, S], the number of each text's group in its row; 0 where is no text.
    margin: float32[B, S], at the first text of a group: its least lead over the second.
    label_smoothing, center: see `Reward`.
  """
  rivals = [groups.later(group, k) == group for k in _DISTANCES]
  before = [groups.later(group, -k) == group for k in _DISTANCES]
  real = group > 0
  total = _plackett_luce(scores - margin, rivals, real, 1)
  if label_smoothing:
    turned = _plackett_luce(scores - margin, before, real, -1)
    total = (1 - label_smoothing) * total + label_smoothing * turned
  first = real & ~before[0]
  later = [groups.later(scores, k) for k in _DISTANCES]
  zipped = zip(rivals, later, strict=True)
  sums = scores + sum(jnp.where(same, x, 0) for same, x in zipped)  # at first texts
  count = 1 + sum(same.astype(jnp.float32) for same in rivals)
  if center:
    total += center * jnp.sum(jnp.where(first, sums**2, 0))
  found = groups.pairs(group)
  better, worse = groups.both(scores, found.real)
  metrics = dict(
    accuracy=jnp.sum((better > worse) * found.share),
    margin=jnp.sum((better - worse) * found.share),
    reward=jnp.sum(jnp.where(first, sums / count, 0)),
  )
  return Loss(total, jnp.sum(first.astype(jnp.float32)), metrics)


def _plackett_luce(scores, rivals, real, way: int):
  """-log p, summed, that each text is preferred to its rivals.

  Args:
    scores: float32[B, S].
    rivals: for each distance bool[B, S], whether the text so much later is a rival.
    real: bool[B, S], False where there is no text.
    way: 1; or -1 if the rivals are earlier.
  """
  terms = [scores] + [
    jnp.where(same, groups.later(scores, way * k), -jnp.inf)
    for k, same in zip(_DISTANCES, rivals, strict=True)
  ]
  losses = jax.nn.logsumexp(jnp.stack(terms), axis=0) - scores
  return jnp.sum(jnp.where(real, losses, 0))
