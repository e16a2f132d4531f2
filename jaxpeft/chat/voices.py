"""The model that speaks, with one of several adapters, or bare."""

import pathlib

from jaxpeft import adapters, experiment, model
from jaxpeft.errors import InputError, unknown
from jaxpeft.export import save
from jaxpeft.generation.sampling import Sampling
from jaxpeft.generation.stream import Session

BARE = "base"  # the name of the model without an adapter


class Voices:
  """A base model and its adapters by name; one of them is in use.

  Attributes:
    model: the base.
    names: of the adapters, and `BARE`.
    used: the name in use.
    session: what computes tokens with it.
  """

  def __init__(self, base: model.Model, adapted: dict, sampling: Sampling):
    """Puts the adapters on one base, if their methods allow that.

    Args:
      base: the model without adapters.
      adapted: {name: parameters with this adapter}; the first is used at the start.
      sampling: how tokens are drawn.
    """
    self.model, self.names = base, [*adapted, BARE]
    self.used = self.names[0]
    self._trees, self._sampling = adapted | {BARE: base.params}, sampling
    self._shared = False
    params = self._trees[self.used]
    if adapted:
      try:
        together = base.params
        for name, tree in adapted.items():
          together = adapters.attach(together, name, tree)
        params, self._shared = adapters.select(together, self.used), True
        self._trees = {}
      except InputError:  # methods or options differ, or the base's weight is not kept
        pass
    self.session = self._new(params)

  def use(self, name: str):
    """Goes on with another adapter, or with `BARE`.

    Raises:
      InputError: there is none of that name.
    """
    if name not in self.names:
      raise unknown("adapter", name, self.names)
    if name == self.used:
      return
    if self._shared:
      row = None if name == BARE else name
      self.session.change(lambda params: adapters.select(params, row))
    else:
      del self.session  # its copy of the weights goes before the next one is made
      self.session = self._new(self._trees[name])
    self.used = name

  def _new(self, params) -> Session:
    stops = self.model.tokenizer.eos_ids
    return Session(self.model.transformer, params, stops, self._sampling)


def of_run(workdir, config, sampling: Sampling) -> Voices:
  """The model of a finished run, and its base.

  Raises:
    InputError: see `experiment.load_run`.
  """
  experiment.adapter_folder(workdir)
  base = experiment.read_base(config)
  tuned = experiment.load_run(workdir, config, base)
  name = pathlib.Path(workdir).resolve().name
  return Voices(base, {name if name != BARE else "run": tuned.params}, sampling)


def of_model(
  source: str, dtype: str, quantize: str | None, given: list[str], sampling: Sampling
) -> Voices:
  """A model with adapters of its own.

  Args:
    source, dtype, quantize: see `model.load`.
    given: "NAME=DIR" for each adapter; DIR may also be the directory of a run.
    sampling: how tokens are drawn.
  Raises:
    InputError: the model or an adapter cannot be read, or they do not belong together.
  """
  places = {}
  for text in given:
    name, _, place = text.partition("=")
    folder = pathlib.Path(place)
    if not name or not place or any(x.isspace() for x in name):
      raise InputError(f"--adapter={text}: it must be NAME=DIR, e.g. mine=runs/mine")
    if name == BARE or name in places:
      raise InputError(f"--adapter={text}: the name {name!r} is taken; choose another")
    if not folder.is_dir():
      raise InputError(f"--adapter={text}: there is no directory {place}")
    is_run = (folder / "config.json").exists() and (folder / "adapter").is_dir()
    places[name] = folder / "adapter" if is_run else folder
  base = model.load(source, dtype, quantize=quantize)
  adapted = {
    name: save.load_adapter(base.params, folder) for name, folder in places.items()
  }
  return Voices(base, adapted, sampling)
