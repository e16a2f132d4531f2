"""Objectives: what a run minimizes, on which data, and which tokens carry gradient.

This package may import `adapters`, `transformer`, `data` and the rooms below those; it
knows nothing of optimizers or runs.
"""

from jaxpeft import adapters
from jaxpeft import config as configs
from jaxpeft.errors import InputError, unknown
from jaxpeft.objectives.base import Loss, Objective
from jaxpeft.objectives.preference import Preference
from jaxpeft.objectives.reward import Reward
from jaxpeft.objectives.supervised import Supervised
from jaxpeft.objectives.token_selection import Selection

__all__ = ["OBJECTIVES", "Loss", "Objective", "Preference", "Reward", "Selection"]
__all__ += ["Supervised", "from_config"]


def _supervised(config) -> Supervised:
  return Supervised(
    loss_on=config.data.loss_on,
    neftune=config.train.neftune,
    selection=Selection(**config.tokens),
  )


def _reward(config) -> Reward:
  return Reward(**{name: config.objective[name] for name in OPTIONS["reward"]})


def _preference(config) -> Preference:
  o = config.objective
  made = Preference(o.loss, o.beta, o.label_smoothing, o.nll, o.reference_free, o.gamma)
  made.check_adapters(adapters.from_config(config.adapt))
  return made


# name -> function of the whole config, since options are in several of its sections.
OBJECTIVES = {
  "supervised": _supervised, "reward": _reward, "preference": _preference,
}  # fmt: skip
# name -> the options of config.objective that it uses.
OPTIONS = {
  "supervised": (),
  "reward": ("label_smoothing", "center", "pool"),
  "preference": (
    "loss", "beta", "label_smoothing", "nll", "reference_free", "gamma",
  ),
}  # fmt: skip


def from_config(config) -> Objective:
  """The objective named by `config.objective.name`, with its options.

  Raises:
    InputError: an unknown name, or an option that is out of range or that the objective
      does not use.
  """
  name = config.objective.name
  if name not in OBJECTIVES:
    raise unknown("objective in objective.name", name, OBJECTIVES)
  _check_used(config, name)
  return OBJECTIVES[name](config)


def _check_used(config, name: str):
  """Refuses options that the objective would ignore."""
  for key, value in configs.to_json(configs.base())["objective"].items():
    if key not in ("name", *OPTIONS[name]) and config.objective[key] != value:
      users = " and ".join(repr(n) for n in OPTIONS if key in OPTIONS[n])
      raise InputError(
        f"objective.{key} is {config.objective[key]!r}, but the objective {name!r} "
        f"does not use it; {users} would. Leave it at {value!r}, or set objective.name"
      )
  if name == "supervised":
    return
  needs = {"tokens.fraction": 1.0, "train.neftune": 0.0, "data.loss_on": "completion"}
  for key, value in needs.items():
    section, option = key.split(".")
    if config[section][option] != value:
      raise InputError(
        f"{key} is {config[section][option]!r}, which the objective {name!r} cannot "
        f"use; leave it at {value!r}, or set objective.name='supervised'"
      )
