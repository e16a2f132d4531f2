"""Gradients of a run's first batches, from which some adapters start."""

from jaxpeft import adapters, console
from jaxpeft.objectives import Objective, Supervised
from jaxpeft.objectives.gradients import gradients
from jaxpeft.training import step


def of_batches(
  transformer, params, rules, batches, accumulate: int,
  objective: Objective = Supervised(),
) -> dict:  # fmt: skip
  """{path: float32 gradient} of the weights whose adapters start from them.

  Args:
    transformer: the model.
    params: parameters of the base, not adapted.
    rules: {regex: adapter}. An adapter's option `batches` says how many it takes.
    batches: of the run, by step; None if theta is loaded afterwards, which gives {}.
    accumulate: microbatches of a batch.
    objective: of the run; its loss without what it leaves to chance is taken.
  """
  if batches is None:
    return {}
  found = adapters.match(params, rules)
  needy = {p: getattr(a, "batches", 1) for p, a in found.items() if a.needs_gradient}
  out = {}
  for count in sorted(set(needy.values())):
    console.note(f"gradient of {count} batches, from which the adapter starts ...")
    micro = (
      {name: x[i] for name, x in step.split(batches[n], accumulate).items()}
      for n in range(count)
      for i in range(accumulate)
    )
    paths = [path for path in needy if needy[path] == count]
    out |= gradients(transformer, params, paths, micro, objective)
  return out
