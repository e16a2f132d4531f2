"""Self-consistency: the majority of m samples. Source: Wang et al. 2022, 2203.11171."""

from jaxpeft.evaluation.strategies import chains, votes
from jaxpeft.evaluation.strategies.chains import Chosen, Options, Problems
from jaxpeft.generation.ask import Ask

CHECKS = ("m",)


def run(problems: Problems, ask: Ask, options: Options) -> list[Chosen]:
  """A vote among m samples."""
  found = chains.run(problems, ask, [1] * options.m, temperatures=options.temperatures)
  return votes.of_chains(problems, found, 1, options._replace(vote_over="all"))
