"""What a run's directory says about the run, for a model card."""

import json
import pathlib
from typing import Any, NamedTuple

from jaxpeft import experiment
from jaxpeft.checkpoints import hf
from jaxpeft.data import hub as data_hub
from jaxpeft.errors import InputError
from jaxpeft.training import log, workdir


class Facts(NamedTuple):
  """A finished run."""

  name: str  # of its directory
  config: Any
  final: dict  # the last line of metrics.jsonl
  hashes: dict[str, str]  # config key -> hash of the data files
  elapsed_s: float | None

  @property
  def base(self) -> str | None:
    """The base's hub id, without a revision; None if it came from elsewhere."""
    found = hf.hub_id(self.config.model.source)
    return found[0] if found else None

  @property
  def methods(self) -> dict[str, dict]:
    """{entry of config.adapt: its fields}."""
    return {name: dict(fields) for name, fields in self.config.adapt.items()}

  def data(self) -> dict[str, str]:
    """{"train", "eval": a name without folders} of the data that the run used."""
    found = {"train": self.config.data.train, "eval": self.config.data.eval}
    return {key: short(str(x)) for key, x in found.items() if x}

  def datasets(self) -> list[str]:
    """Hub ids of the data sets that the run used."""
    found = []
    for source in (self.config.data.train, self.config.data.eval):
      text = str(source)
      what = None if pathlib.Path(text).exists() else data_hub.parse(text)
      if what and not text.startswith("embedded:"):
        found.append(what.repo)
    return list(dict.fromkeys(found))


def of(folder) -> Facts:
  """The facts of a finished run.

  Raises:
    InputError: the directory is no run, or the run is not finished.
  """
  folder = pathlib.Path(folder)
  config = workdir.read_config(folder)
  experiment.adapter_folder(folder)
  lines = log.read(folder / "metrics.jsonl")
  if not lines or "final" not in lines[-1]:
    raise InputError(
      f"{folder}: metrics.jsonl has no final line: the run is not finished; run the "
      "same train.py command to go on"
    )
  try:
    hashes = json.loads((folder / "data.json").read_text())
  except (OSError, ValueError):
    hashes = {}
  hashes = hashes if isinstance(hashes, dict) else {}
  name = folder.resolve().name
  return Facts(name, config, lines[-1], hashes, lines[-1].get("elapsed_s"))


def short(source: str) -> str:
  """A source without the folders of this machine; hub ids and toys stay as they are."""
  if hf.hub_id(source) and not pathlib.Path(source).exists():
    return source
  if source.startswith("embedded") or data_hub.parse(source):
    return source
  return pathlib.PurePath(source).name
