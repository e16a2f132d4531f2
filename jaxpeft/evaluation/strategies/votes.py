"""Majority votes, and votes with weights."""

import collections
from collections.abc import Sequence

import numpy as np

from jaxpeft.evaluation.strategies.chains import Chain, Chosen, Options, Problems
from jaxpeft.evaluation.tasks.exact import INVALID


def majority(answers: Sequence[str], voters: Sequence[int] = ()) -> tuple[int, float]:
  """(place of the first answer that has the most votes, its share of the votes).

  A text without an answer never wins against one with an answer, but it counts in the
  share. Chains are alike, so that of equal counts the first is a random one.

  Args:
    answers: as `task.answer` gives them.
    voters: places in `answers` that vote; () is all.
  """
  voters = voters or range(len(answers))
  counts = collections.Counter(answers[i] for i in voters if answers[i] != INVALID)
  if not counts:
    return voters[0], 0.0
  most = max(counts.values())
  best = next(i for i in voters if counts.get(answers[i]) == most)
  return best, most / len(voters)


def weighted(answers: Sequence[str], rewards: Sequence[float]) -> tuple[int, float]:
  """(place of the best text of the heaviest answer, its share of all weights).

  The weight of an answer is the sum of exp(reward) of the texts that give it. A text
  without an answer never wins against one with an answer, but it counts in the share.

  Args:
    answers: as `task.answer` gives them.
    rewards: of the texts, in the same order.
  """
  weights = np.exp(np.subtract(rewards, max(rewards)))  # only their ratios count
  sums = {
    x: sum(w for w, y in zip(weights, answers, strict=True) if y == x)
    for x in dict.fromkeys(answers)
    if x != INVALID
  }
  if not sums:
    return max(range(len(answers)), key=rewards.__getitem__), 0.0
  most = max(sums, key=sums.__getitem__)
  best = max((i for i, x in enumerate(answers) if x == most), key=rewards.__getitem__)
  return best, float(sums[most] / weights.sum())


def of_chains(
  problems: Problems, chains: list[list[Chain]], calls: int, options: Options
) -> list[Chosen]:
  """A vote among the ends of chains.

  Args:
    problems: what was asked.
    chains: of every problem.
    calls: at which the chains are cut.
    options: `vote_over` "verified_first" lets accepted chains vote alone, if there are
      any; `rule` says which answers are the same.
  """
  task, found = problems.task, []
  for own in chains:
    ends = [chain.cut(calls) for chain in own]
    said = [task.answer(task.cut(end.text), options.rule) for end in ends]
    first = options.vote_over == "verified_first"
    voters = [i for i, end in enumerate(ends) if end.accepted] if first else []
    best, share = majority(said, voters)
    found.append(Chosen(ends[best].text, share, own))
  return found
