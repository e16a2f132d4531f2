"""Log-likelihoods of many (context, continuation) pairs of token ids.

Continuations of one context share its prefill. Pairs are sorted into groups of similar
continuations, so that few are padded much and few programs are compiled.
"""

from collections.abc import Sequence

from jaxpeft.errors import InputError
from jaxpeft.generation import score
from jaxpeft.model import Model

Pair = tuple[Sequence[int], Sequence[int]]


def likelihoods(
  model: Model, pairs: Sequence[Pair], limit: int, batch_size: int, label: str | None
) -> list[tuple[float, bool]]:
  """(log-likelihood in nats, whether greedy gives the continuation) of each pair.

  A text that is too long loses tokens at its start: the model reads the last `limit`
  ones before the last token.

  Args:
    model: the model.
    pairs: token ids of contexts and continuations, none of them empty.
    limit: most tokens that the model reads at once.
    batch_size: most contexts at once; 0 is as many as memory holds.
    label: of the progress; None says nothing.
  Raises:
    InputError: a continuation has no tokens, or more than `limit`.
  """
  places: dict[tuple, dict[tuple, list[int]]] = {}
  for i, (context, own) in enumerate(pairs):
    if not 0 < len(own) <= limit:
      raise InputError(
        f"a continuation of {len(own)} tokens cannot be scored; the model reads "
        f"{limit}, and at least one is needed"
      )
    context = tuple(context[-(limit + 1 - len(own)) :])
    places.setdefault(context, {}).setdefault(tuple(own), []).append(i)
  groups: dict[tuple[int, int], list[tuple]] = {}
  for context, asked in places.items():
    like = _power(max(map(len, asked))), _power(len(asked))
    groups.setdefault(like, []).append(context)
  out: list[tuple[float, bool] | None] = [None] * len(pairs)
  for like in sorted(groups):
    contexts = groups[like]
    asked = [[list(own) for own in places[context]] for context in contexts]
    found = score.with_greedy(
      model.transformer, model.params, list(map(list, contexts)), asked,
      batch_size, label,
    )  # fmt: skip
    for context, some in zip(contexts, found, strict=True):
      for numbers, result in zip(places[context].values(), some, strict=True):
        for i in numbers:
          out[i] = result
  return [x for x in out if x is not None]


def _power(count: int) -> int:
  """The least power of 4 that is at least `count`."""
  power = 1
  while power < count:
    power *= 4
  return power
