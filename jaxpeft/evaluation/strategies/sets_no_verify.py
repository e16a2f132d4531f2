"""SETS without verify: every round corrects, and sees only the solutions before it."""

from jaxpeft.evaluation.strategies import sets
from jaxpeft.evaluation.strategies.chains import Chosen, Options, Problems
from jaxpeft.generation.ask import Ask

CHECKS = ("m", "n")
CYCLE = ("correct",)


def run(problems: Problems, ask: Ask, options: Options) -> list[Chosen]:
  """A vote among the last corrections of m chains."""
  return sets.run(problems, ask, options._replace(vote_over="all"), CYCLE)
