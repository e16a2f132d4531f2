"""Self-refine: one chain of verify and correct, which is SETS with m = 1.

Source: Madaan et al. 2023, arXiv 2303.17651.
"""

from jaxpeft.evaluation.strategies import sets
from jaxpeft.evaluation.strategies.chains import Chosen, Options, Problems
from jaxpeft.generation.ask import Ask

CHECKS = ("n",)


def run(problems: Problems, ask: Ask, options: Options) -> list[Chosen]:
  """The end of one chain for each problem."""
  return sets.run(problems, ask, options._replace(m=1, vote_over="all"))
