"""What is trained on what: objectives by name, their losses, the choice of tokens.

May import `transformer`, `data` and what stands below them; it knows no adapter, no
optimizer and no run.
"""

from jaxpeft.errors import unknown
from jaxpeft.objectives.base import Loss, Objective
from jaxpeft.objectives.supervised import Supervised
from jaxpeft.objectives.token_selection import Selection

__all__ = ["OBJECTIVES", "Loss", "Objective", "Selection", "Supervised", "from_config"]


def _supervised(config) -> Supervised:
  return Supervised(
    loss_on=config.data.loss_on,
    neftune=config.train.neftune,
    selection=Selection(**config.tokens),
  )


# name -> function of a run's whole config: options lie where version 1 had them.
OBJECTIVES = {"supervised": _supervised}


def from_config(config) -> Objective:
  """The objective that `config.objective.name` names, with its options.

  Raises:
    InputError: an unknown name, or an option that is out of range.
  """
  name = config.objective.name
  if name not in OBJECTIVES:
    raise unknown("objective in objective.name", name, OBJECTIVES)
  return OBJECTIVES[name](config)
