"""Judges: models that score given answers, by a reward or by log-probabilities.

A `Judge` is an `Ask` for completions, whose replies have the score in the place of the
log-probability, so that a task needs no other way to ask. It is also a reward for the
strategies of `strategies.rewards`. Texts are tokenized as for training, with the end of
text, which is scored, too.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from jaxpeft import adapters
from jaxpeft.data import encode
from jaxpeft.errors import InputError, unknown
from jaxpeft.generation import score
from jaxpeft.generation.ask import Conversation, Reply, Request
from jaxpeft.objectives import reward as rewards
from jaxpeft.objectives import scoring

WAYS = ("auto", "reward", "sum", "mean", "change")


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
      ids = [ids for ids, _ in given]
      if self.pool == "hf":
        ids = [scoring.trimmed(x, rewards.padding(model.tokenizer)) for x in ids]
      size, label = self.batch_size, self.label
      return scoring.rewards(model.transformer, model.params, ids, size, label)
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
