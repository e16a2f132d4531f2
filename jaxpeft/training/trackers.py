"""Trackers: programs that show a run's numbers while it trains, found by their names.

`config.log.tracker` names one or several. metrics.jsonl is written in any case. A
tracker that gives each run an id gets the same one when the run resumes; it is kept in
the file trackers.json of the run's directory.
"""

import contextlib
import importlib.util
import json
import pathlib
import sys
import uuid
from collections.abc import Mapping
from typing import Protocol

from jaxpeft import config as configs
from jaxpeft.errors import InputError, unknown
from jaxpeft.parallel import distributed

_IDS = "trackers.json"


class Tracker(Protocol):
  """What a run's `Log` needs of a tracker."""

  def scalars(self, step: int, values: Mapping[str, float]):
    """Takes the numbers of one step."""
    ...

  def close(self):
    """Stores what is not stored yet."""
    ...


class TensorBoard:
  """Files in the folder tensorboard/ of a run's directory."""

  def __init__(self, workdir: pathlib.Path, step: int, config):
    del config  # the run's directory has config.json
    import tensorboardX

    after = step + 1 if step > 0 else None  # what was written later is written again
    self._board = tensorboardX.SummaryWriter(
      str(workdir / "tensorboard"), purge_step=after
    )

  def scalars(self, step: int, values: Mapping[str, float]):
    for name, value in values.items():
      self._board.add_scalar(name, value, step)

  def close(self):
    self._board.close()


class WandB:
  """Weights & Biases; `wandb login`, or WANDB_MODE=offline, come before."""

  def __init__(self, workdir: pathlib.Path, step: int, config):
    import wandb  # pyright: ignore[reportMissingImports]

    self._run = wandb.init(
      project=config.log.project,
      name=_name(workdir),
      id=_id(workdir, "wandb"),
      resume="allow",
      config=configs.to_json(config),
      dir=str(workdir),
    )

  def scalars(self, step: int, values: Mapping[str, float]):
    self._run.log(values, step=step)

  def close(self):
    self._run.finish()


class Trackio:
  """Trackio, on this machine or, with TRACKIO_SPACE_ID, in a Space of the hub."""

  def __init__(self, workdir: pathlib.Path, step: int, config):
    import trackio  # pyright: ignore[reportMissingImports]

    name = f"{_name(workdir)}-{_id(workdir, 'trackio')}"
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the run's result
      self._run = trackio.init(
        project=config.log.project,
        name=name,
        config=configs.to_json(config),
        resume="allow",
        embed=False,
      )

  def scalars(self, step: int, values: Mapping[str, float]):
    self._run.log(values, step=step)

  def close(self):
    with contextlib.redirect_stdout(sys.stderr):
      self._run.finish()


# name -> (class, the package it needs)
TRACKERS = {
  "tensorboard": (TensorBoard, "tensorboardX"),
  "wandb": (WandB, "wandb"),
  "trackio": (Trackio, "trackio"),
}


def check(text: str) -> list[str]:
  """The names of trackers in a text such as "tensorboard,wandb"; "none" is [].

  Raises:
    InputError: an unknown name, or the package of a tracker is not installed.
  """
  names = [] if text.strip() == "none" else [x.strip() for x in text.split(",")]
  for name in names:
    if name not in TRACKERS:
      raise unknown("tracker in log.tracker", name, [*TRACKERS, "none"])
    package = TRACKERS[name][1]
    if importlib.util.find_spec(package) is None:
      raise InputError(
        f"log.tracker={text}: {package} is not installed; pip install {package}, or "
        "set log.tracker=none"
      )
  return list(dict.fromkeys(names))


def start(workdir: pathlib.Path, step: int, config) -> list[Tracker]:
  """The started trackers of a run; [] in all processes but the first.

  Args:
    workdir: the run's directory.
    step: where the run goes on; -1 if it is new.
    config: of the run.
  Raises:
    InputError: a tracker cannot be started.
  """
  names, found = check(config.log.tracker), []
  for name in names if distributed.is_main() else ():
    try:
      found.append(TRACKERS[name][0](workdir, step, config))
    # Trackers have errors of their own kinds: no login, no network, a full disk.
    except Exception as e:
      for tracker in found:
        tracker.close()
      reason = (str(e).strip() or type(e).__name__).splitlines()[0]
      raise InputError(
        f"log.tracker: {name} does not start: {reason}; set log.tracker=none to train "
        "without it"
      ) from e
  return found


def _name(workdir: pathlib.Path) -> str:
  return workdir.resolve().name


def _id(workdir: pathlib.Path, tracker: str) -> str:
  """The id of this run at a tracker: of trackers.json, or a new one, which it gets."""
  path = workdir / _IDS
  try:
    ids = json.loads(path.read_text())
  except (OSError, ValueError):
    ids = {}
  ids = ids if isinstance(ids, dict) else {}
  if not isinstance(ids.get(tracker), str):
    ids[tracker] = uuid.uuid4().hex[:12]
    path.with_suffix(".tmp").write_text(json.dumps(ids) + "\n")
    path.with_suffix(".tmp").replace(path)
  return ids[tracker]
