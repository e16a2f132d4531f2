"""Objectives: what a run minimizes, on which data, and which tokens carry gradient.

This package may import `transformer`, `data` and the rooms below those; it knows
nothing of adapters, optimizers or runs.
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


# name -> function of the whole config, since options are in several of its sections.
OBJECTIVES = {"supervised": _supervised}


def from_config(config) -> Objective:
  """The objective named by `config.objective.name`, with its options.

  Raises:
    InputError: an unknown name, or an option that is out of range.
  """
  name = config.objective.name
  if name not in OBJECTIVES:
    raise unknown("objective in objective.name", name, OBJECTIVES)
  return OBJECTIVES[name](config)
