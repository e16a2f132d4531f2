"""Strategies: how a model spends tokens at test time to answer better. One file each.

A module in `STRATEGIES` has
  run(problems, ask, options) -> list of `chains.Chosen`, one for each problem
  CHECKS      names of the `Options` that it reads, for messages and checks
All of them put their requests to an `Ask`, with keys (problem, chain, operation), so
that a text does not depend on which others are asked with it.
"""

from typing import Any

from jaxpeft.errors import InputError, unknown
from jaxpeft.evaluation.strategies import (
  best_of_n,
  chain_of_thought,
  greedy,
  self_consistency,
  self_refine,
  sets,
  sets_no_correct,
  sets_no_verify,
  weighted_vote,
)
from jaxpeft.evaluation.strategies.chains import Options

STRATEGIES = {
  "greedy": greedy,
  "chain_of_thought": chain_of_thought,
  "self_consistency": self_consistency,
  "best_of_n": best_of_n,
  "weighted_vote": weighted_vote,
  "self_refine": self_refine,
  "sets": sets,
  "sets_no_verify": sets_no_verify,
  "sets_no_correct": sets_no_correct,
}
MOST = 10_000  # chains of a problem, or rounds of a chain


def get(name: str) -> Any:
  """The module of that strategy.

  Raises:
    InputError: there is no such strategy.
  """
  if name not in STRATEGIES:
    raise unknown("strategy in eval.strategy", name, STRATEGIES)
  return STRATEGIES[name]


def options(e, reward=None) -> Options:
  """The options in `config.eval`.

  Args:
    e: `config.eval`. Its `reward` is the name of a reward model, which is not read.
    reward: the model, as a function of a prompt and a text; see `rewards`.
  Raises:
    InputError: an option is out of its range, has no such value, or is not read.
  """
  for key, least in (("m", 1), ("n", 0)):
    if not least <= e[key] <= MOST:
      raise InputError(f"eval.{key} {e[key]} is not from {least} to {MOST}")
  if e.vote_over not in ("all", "verified_first"):
    raise unknown("eval.vote_over", e.vote_over, ("all", "verified_first"))
  if e.by not in best_of_n.BY:
    raise unknown("eval.by", e.by, best_of_n.BY)
  heats = tuple(e.temperatures)
  fits = len(heats) == 3 and all(type(x) in (int, float) for x in heats)
  if not fits or not all(0 <= x <= 100 for x in heats):
    raise InputError(
      f"eval.temperatures {heats} must be three numbers from 0 to 100, of sample, "
      "verify and correct, e.g. 0.7,0.7,0.7"
    )
  if rewarded(e) and reward is None and not e.reward:
    raise InputError(
      f"eval.strategy={e.strategy!r} needs a reward model here: name a run that "
      "trained one, eval.reward=runs/NAME (eval.py --reward=runs/NAME)"
    )
  if e.reward and not rewarded(e):
    raise InputError(
      f"eval.reward {e.reward!r} is read only by eval.strategy=weighted_vote, and by "
      f"best_of_n with eval.by=reward; the strategy is {e.strategy!r} and by {e.by!r}"
    )
  return Options(e.m, e.n, e.vote_over, e.by, heats, e.answer, reward)


def rewarded(e) -> bool:
  """Whether the strategy of `config.eval` needs a reward model."""
  return e.strategy == "weighted_vote" or (
    e.strategy == "best_of_n" and e.by == "reward"
  )


def temperatures(words) -> tuple[float, ...]:
  """Numbers in the words of a command line; `options` checks them.

  Raises:
    InputError: a word is no number.
  """
  try:
    return tuple(float(x) for x in words)
  except ValueError as e:
    raise InputError(
      f"--temperatures={','.join(words)} must be three numbers, of sample, verify and "
      "correct, e.g. 0.7,0.7,0.7"
    ) from e
