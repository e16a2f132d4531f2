"""Weighted vote: m samples vote, each with the weight exp(its reward).

Rewards of a Bradley-Terry model say how likely one answer beats another. By the same
model, exp(r) over the sum of exp(r) is the chance of a sample to be the best of all;
an answer's share of the weights is that of all samples that give it. A constant added
to the rewards of a problem changes nothing.

Source: Li et al. 2023, arXiv 2206.02336 (a vote weighted by a verifier); Luce 1959.
"""

from jaxpeft.evaluation.strategies import chains, rewards, votes
from jaxpeft.evaluation.strategies.chains import Chosen, Options, Problems
from jaxpeft.generation.ask import Ask

CHECKS = ("m",)


def run(problems: Problems, ask: Ask, options: Options) -> list[Chosen]:
  """The answer with the most weight, in its sample of the largest reward."""
  found = chains.run(problems, ask, [1] * options.m, temperatures=options.temperatures)
  scores = rewards.of_samples(problems, options, found)
  task, out = problems.task, []
  for own, some in zip(found, scores, strict=True):
    said = [task.answer(task.cut(x.calls[0].text), options.rule) for x in own]
    best, share = votes.weighted(said, some)
    out.append(Chosen(own[best].calls[0].text, share, own))
  return out
