"""Judges: models that score given answers, by a reward or by log-probabilities.

A `Judge` is an `Ask` for completions, whose replies have the score in the place of the
log-probability, so that a task needs no other way to ask. It is also a reward for the
strategies of `strategies.rewards`. Texts are tokenized as for training, with the end of
text, which is scored, too.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxpeft import adapters, console
from jaxpeft.data import encode, pairs
from jaxpeft.data.examples import Example
from jaxpeft.errors import InputError, unknown
from jaxpeft.generation import score
from jaxpeft.generation.ask import Conversation, Reply, Request
from jaxpeft.objectives import reward as rewards
from jaxpeft.parallel import sharding

WAYS = ("auto", "reward", "sum", "mean", "change")
_TOKENS = 2**13  # of a batch, unless a single text has more
_LEAST = 32  # tokens of a row


@dataclasses.dataclass(frozen=True)
class Judge:
  """Scores of answers.

  Attributes:
    model: a `Model` with parameters.
    by: "reward" is the model's head. "sum" is the log-probability of an answer, "mean"
      that of its tokens on average, "change" what the adapter has added to the sum;
      where there is no adapter, it is the sum. "auto" is "reward" if the model has a
      head, and otherwise "sum".
    beta: factor of "change", so that it is the reward that DPO implies.
    pool: the token that is scored by a head, see `objectives.reward.Reward`.
    batch_size: most texts at once; None or 0 is as many as fit.
    label: label of a progress bar; None shows no bar.
  """

  model: Any
  by: str = "auto"
  beta: float = 1.0
  pool: str = "last"
  batch_size: int | None = None
  label: str | None = None

  def __post_init__(self):
    check(self.by)

  def __call__(self, requests: list[Request]) -> list[Reply]:
    """Replies whose `logprob` is the score of the request's completion."""
    assert all(r.completion is not None for r in requests)
    found = self._encoded([(r.prompt, r.completion) for r in requests])
    return [
      Reply(r.completion or "", len(ids) - before, before, value)
      for r, (ids, before), value in zip(
        requests, found, self._scores(found), strict=True
      )
    ]

  def many(self, given: Sequence[tuple[Any, str]]) -> list[float]:
    """The scores of (prompt, answer) pairs."""
    return self._scores(self._encoded(given))

  def _encoded(self, given) -> list[tuple[list[int], int]]:
    """(ids with the end of text, how many of them are the prompt's) of each pair."""
    tokenizer, plain = self.model.tokenizer, {}
    texts = [i for i, (prompt, _) in enumerate(given) if isinstance(prompt, str)]
    for i, made in zip(
      texts, encode.together([given[i] for i in texts], tokenizer), strict=True
    ):
      plain[i] = made
    out = []
    for i, (prompt, answer) in enumerate(given):
      ids, before = plain[i] if i in plain else _chat(prompt, answer, tokenizer)
      if len(ids) > self.model.config.max_positions:
        raise InputError(
          f"a prompt and an answer of {len(ids)} tokens exceed the model's "
          f"{self.model.config.max_positions} positions; leave such rows out"
        )
      if before >= len(ids):
        raise InputError(f"the answer {answer[:60]!r} has no tokens to score")
      out.append((ids, before))
    return out

  def _scores(self, given: list[tuple[list[int], int]]) -> list[float]:
    model = self.model
    by = self.by
    if by == "auto":
      by = "reward" if rewards.HEAD in model.params else "sum"
    if by == "reward":
      return _rewards(
        model, [ids for ids, _ in given], self.pool, self.batch_size, self.label
      )
    found = self._logprobs(model.params, given)
    if by == "mean":
      return [x / (len(ids) - at) for x, (ids, at) in zip(found, given, strict=True)]
    nodes = adapters.nodes(model.params).values()
    if by == "change" and any(adapters.is_adapted(node) for node in nodes):
      before = self._logprobs(adapters.reference(model.params), given)
      return [self.beta * (x - y) for x, y in zip(found, before, strict=True)]
    return found

  def _logprobs(self, params, given) -> list[float]:
    """Log-probabilities of the answers; those of one prompt share its prefill."""
    prompts = list(dict.fromkeys(tuple(ids[:at]) for ids, at in given))
    row = {prompt: i for i, prompt in enumerate(prompts)}
    asked: list[list[list[int]]] = [[] for _ in prompts]
    places = []
    for ids, at in given:
      own = row[tuple(ids[:at])]
      places.append((own, len(asked[own])))
      asked[own].append(ids[at:])
    found = score.score(
      self.model.transformer, params, list(map(list, prompts)), asked,
      self.batch_size, self.label,
    )  # fmt: skip
    return [found[i][j] for i, j in places]


def _chat(prompt: Conversation, answer: str, tokenizer) -> tuple[list[int], int]:
  """(ids, how many of them are the prompt's) of a conversation with its last answer."""
  turns, place = list(prompt.messages), "a conversation that is scored"
  last = dict(role="assistant", content=answer)
  ids, _ = encode.conversation([*turns, last], prompt.tools, tokenizer, place)
  before, _ = encode.conversation(turns, prompt.tools, tokenizer, place, True)
  same = itertools.takewhile(lambda x: x[0] == x[1], zip(before, ids, strict=False))
  return ids, len(list(same))


def _rewards(model, texts: list[list[int]], pool, batch_size, label) -> list[float]:
  """The head's value at the end of every text; texts of like lengths are a batch."""
  if pool == "hf":
    texts = [_trimmed(ids, rewards.padding(model.tokenizer)) for ids in texts]
  order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
  cut, starts, at = sharding.cut("batch"), [], 0
  while at < len(order):
    # As wide as the longest text of those that would be in the batch.
    rows = batch_size or max(1, _TOKENS // _width(len(texts[order[at]])))
    some = order[at : at + rows]
    width = _width(len(texts[some[-1]]))
    some = some if batch_size else some[: max(1, _TOKENS // width)]
    rows = min(rows, _power(len(some)))
    starts.append((some, width, -(-rows // cut) * cut))
    at += len(some)
  out = [0.0] * len(texts)
  for some, width, rows in console.progress(starts, label, len(starts), "batches"):
    groups = [
      [Example(np.array(texts[i], np.int32), np.arange(len(texts[i])) > 0)]
      for i in some
    ]
    groups += [[] for _ in range(rows - len(groups))]
    batch = pairs.to_arrays(groups, width)
    found = np.asarray(_scored(model.transformer, model.params, batch))
    for row, i in enumerate(some):
      out[i] = float(found[row, 0])
  return out


@functools.partial(jax.jit, static_argnums=0)
def _scored(transformer, params, batch):
  return sharding.replicated(rewards.rewards(transformer, params, batch))


def _trimmed(ids: list[int], token: int | None) -> list[int]:
  """The ids without that token at their end; at least one stays."""
  count = len(ids)
  while count > 1 and ids[count - 1] == token:
    count -= 1
  return ids[:count]


def _width(length: int) -> int:
  """The tokens of a row for a text of that length."""
  return max(_LEAST, _power(length))


def _power(count: int) -> int:
  """The next power of two: so there are few programs to compile."""
  return 1 << (count - 1).bit_length()


def check(by: str):
  """Raises InputError unless there is such a way to score."""
  if by not in WAYS:
    raise unknown("eval.prefer", by, WAYS)


def of_run(config, model, label: str | None = "answers") -> Judge:
  """The judge of a run's task `preference`."""
  e, o = config.eval, config.objective
  beta = o.beta if o.name == "preference" else 1.0
  return Judge(model, e.prefer, beta, o.pool, e.batch_size, label)


def reward_of(config, model) -> Judge:
  """The reward model that a run trained, for strategies.

  Raises:
    InputError: the run trained no reward model.
  """
  if model.params is None or rewards.HEAD not in model.params:
    raise InputError(
      f"the run of eval.reward has objective.name={config.objective.name!r}, which has "
      "no reward head; name a run of objective.name='reward'"
    )
  return Judge(model, "reward", pool=config.objective.pool, label="rewards")
