"""SETS: m chains of sample, then up to n rounds of verify and correct; then a vote.

A chain ends as soon as it verifies its solution. The last correction is not verified.
n = 0 is self-consistency, m = 1 self-refine; m (1 + 2 n) calls are the most.

Source: Chen et al. 2025, arXiv 2501.19306.
"""

from jaxpeft.evaluation.strategies import chains, votes
from jaxpeft.evaluation.strategies.chains import Chosen, Options, Problems
from jaxpeft.generation.ask import Ask

CHECKS = ("m", "n", "vote_over")


def run(problems: Problems, ask: Ask, options: Options, cycle=chains.SETS):
  """A vote among the ends of m chains; `cycle` is what a round consists of."""
  calls = 1 + len(cycle) * options.n
  found = chains.run(problems, ask, [calls] * options.m, cycle, options.temperatures)
  chosen: list[Chosen] = votes.of_chains(problems, found, calls, options)
  return chosen
