"""Greedy: the likeliest answer to the task's own prompt, once."""

from jaxpeft.evaluation.strategies import chains
from jaxpeft.evaluation.strategies.chains import Chain, Chosen, Options, Problems
from jaxpeft.generation.ask import Ask, Request

CHECKS = ()


def run(problems: Problems, ask: Ask, options: Options) -> list[Chosen]:
  """One text for each problem, at temperature 0."""
  limit = problems.roles.limit["sample"]
  return once(problems, ask, lambda prompt: prompt, limit)


def once(problems: Problems, ask: Ask, change, limit=None) -> list[Chosen]:
  """Asks every problem once at temperature 0, with `change`d prompts."""
  requests, stop = [], problems.roles.stop["sample"]
  for p, row in enumerate(problems.rows):
    prompt = change(problems.task.prompt(row, problems.shown(p)))
    requests.append(Request(prompt, None, stop, limit, 0.0, (p, 0, 0)))
  found = []
  for reply in ask(requests):
    own = [Chain([chains.call(problems.roles, "sample", reply)])]
    found.append(Chosen(reply.text, 1.0, own))
  return found
