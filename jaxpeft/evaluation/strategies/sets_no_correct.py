"""SETS without correct: a solution that is refused is replaced by a new sample."""

from jaxpeft.evaluation.strategies import sets
from jaxpeft.evaluation.strategies.chains import Chosen, Options, Problems
from jaxpeft.generation.ask import Ask

CHECKS = ("m", "n", "vote_over")
CYCLE = ("verify", "sample")


def run(problems: Problems, ask: Ask, options: Options) -> list[Chosen]:
  """A vote among the last samples of m chains."""
  return sets.run(problems, ask, options, CYCLE)
