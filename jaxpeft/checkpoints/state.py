"""The state of a run, by Orbax: asynchronous, atomic, the newest two are kept.

Only what training changes is saved: trainable partition, optimiser state, step. The
data position is the step, and the frozen partition is recognised by its fingerprint.
"""

import logging
import pathlib

import jax
import orbax.checkpoint as ocp

from jaxpeft import partitions
from jaxpeft.errors import InputError

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax narrates every step


class Checkpoints:
  """The checkpoints of one run directory. Close it, to finish what is being written."""

  def __init__(self, directory: pathlib.Path):
    options = ocp.CheckpointManagerOptions(
      max_to_keep=2, enable_async_checkpointing=True, cleanup_tmp_directories=True
    )
    self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

  @property
  def latest(self) -> int | None:
    """The newest complete step, or None."""
    return self._manager.latest_step()

  def save(self, state, extra: dict):
    """Starts to save the state of its step; `extra` is a small JSON value."""
    step = int(state.step)
    if step == self.latest:
      return
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(partitions.flatten(state)),
      extra=ocp.args.JsonSave(extra),
    )
    self._manager.save(step, args=args, force=True)

  def restore(self, like):
    """(state, extra) of the newest step, with the structure of `like`.

    Raises:
      InputError: if it has other leaves, i.e. belongs to another config.
    """
    step = self.latest
    want = {
      path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
      for path, x in partitions.flatten(like).items()
    }
    args = ocp.args.Composite(
      state=ocp.args.StandardRestore(want), extra=ocp.args.JsonRestore()
    )
    try:
      got = self._manager.restore(step, args=args)
    except Exception as e:
      reason = str(e).strip().split("\n")[0][:200]
      raise InputError(
        f"cannot resume from step {step} in {self._manager.directory}: {reason}. "
        "If the config's adapters or optimiser changed, use another --workdir"
      ) from e
    # A copy: what Orbax gives may share memory, and steps donate their input.
    flat = {path: jax.numpy.array(x) for path, x in got.state.items()}
    return partitions.unflatten(flat, like), got.extra

  def close(self):
    """Waits until everything is written."""
    self._manager.wait_until_finished()
    self._manager.close()
