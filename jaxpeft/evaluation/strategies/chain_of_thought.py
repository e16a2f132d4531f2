"""Chain of thought: one answer, for which the model is asked to think first.

Source: Kojima et al. 2022, arXiv 2205.11916, zero-shot.
"""

from jaxpeft.evaluation.strategies import greedy
from jaxpeft.evaluation.strategies.chains import Chosen, Options, Problems
from jaxpeft.evaluation.strategies.roles import extended
from jaxpeft.evaluation.tasks.parts import Prompt
from jaxpeft.generation.ask import Ask

CHECKS = ()
_WORDS = "Let's think step by step."


def run(problems: Problems, ask: Ask, options: Options) -> list[Chosen]:
  """One text for each problem, at temperature 0."""
  return greedy.once(problems, ask, thinking)


def thinking(prompt: Prompt) -> Prompt:
  """A text goes on with the words behind its cue; a turn of the user ends with them."""
  if isinstance(prompt, str):
    return f"{prompt.rstrip()} {_WORDS}"
  return extended(prompt, _WORDS)
