"""Saves and restores the state of a run: asynchronous, atomic, verified checkpoints.

A checkpoint holds only what training changes: the trainable partition, the optimizer
state and the step. The step also gives the position in the data, and a fingerprint
identifies the frozen partition. The two newest checkpoints are kept.

Orbax writes the files but has no checksums: a flipped byte would silently come back as
a wrong weight. Therefore a JSON item of each checkpoint holds a checksum of every leaf.
A damaged checkpoint is reported and skipped, and the one before it is used instead.
"""

import json
import logging
import pathlib
import shutil
import sys
import warnings

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from jaxpeft import console, tree
from jaxpeft.checkpoints import json_file
from jaxpeft.errors import InputError, shortage
from jaxpeft.parallel import distributed

# Orbax logs every save, and the traceback of every error that it raises later.
logging.getLogger("absl").setLevel(logging.CRITICAL)


def _too_late(kind, error) -> bool:
  """Whether an error is that of a write which came too late for a failed save.

  TensorStore's threads print one for every array of a save that failed, e.g. because
  the disk is full. The save's own error is raised by the next call.
  """
  return kind is RuntimeError and str(error) == "Event loop is closed"


def _report(kind, error, trace, report=sys.excepthook):
  if not _too_late(kind, error):
    report(kind, error, trace)


def _report_unraisable(about, report=sys.unraisablehook):
  if not _too_late(about.exc_type, about.exc_value):
    report(about)


def _worth_a_line(record: logging.LogRecord) -> bool:
  """Whether asyncio's record is not that of a full disk, met by one of many writes."""
  error = record.exc_info and record.exc_info[1]
  return not error or shortage(error) is None


# Which hook is called depends on the version of TensorStore.
sys.excepthook, sys.unraisablehook = _report, _report_unraisable
# A save ends with the error of one write; asyncio logs those of the others.
logging.getLogger("asyncio").addFilter(_worth_a_line)
# Orbax drops the writes that a failed save had not begun.
warnings.filterwarnings("ignore", r"coroutine .*write_\w+' was never awaited")


class Checkpoints:
  """The checkpoints in one directory; `close` finishes a save in progress."""

  def __init__(self, directory: pathlib.Path):
    self._directory = directory.absolute()
    self._directory.mkdir(parents=True, exist_ok=True)
    # With named processes, Orbax waits for them through the coordination service.
    # Otherwise it waits in a collective on the devices, which fails if one process
    # arrives 30 s after another.
    several = distributed.count() > 1
    everyone = set(range(distributed.count())) if several else None
    options = ocp.CheckpointManagerOptions(
      max_to_keep=2,
      enable_async_checkpointing=True,
      cleanup_tmp_directories=True,
      create=False,
      multiprocessing_options=ocp.options.MultiprocessingOptions(
        active_processes=everyone
      ),
    )
    self._manager = ocp.CheckpointManager(self._directory, options=options)

  @property
  def latest(self) -> int | None:
    """The newest saved step, or None; only `restore` checks that it is not damaged."""
    return self._manager.latest_step()

  def save(self, state, extra: dict):
    """Starts to save `state` as the checkpoint of its step, unless that step is saved.

    Every process must call this. The arrays may be donated as soon as it returns.

    Args:
      state: a `TrainState`: its `step` names the checkpoint.
      extra: a small JSON value to save with it.
    """
    step = int(state.step)
    if step == self.latest:
      return
    flat = tree.flatten(state)
    sums = jax.device_get(checksums(flat))
    leaves = {path: [*_kind(x), sums[path].tolist()] for path, x in flat.items()}
    about = dict(extra=extra, leaves=leaves)
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(flat),
      extra=ocp.args.JsonSave(about | dict(crc32=json_file.crc32(about))),
    )
    self._manager.save(step, args=args, force=True)

  def restore(self, like):
    """(state, extra) of the newest checkpoint that is not damaged.

    Every process must call this, and all get the same step. Newer, damaged checkpoints
    are renamed to STEP.damaged, so that their steps can be saved again.

    Args:
      like: a state whose structure, shapes, dtypes and shardings the result has.
    Raises:
      InputError: the checkpoint has other leaves than `like`, so it belongs to another
        config; or there is no usable checkpoint.
    """
    want = {
      path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
      for path, x in tree.flatten(like).items()
    }
    damaged = {}
    steps = json.loads(distributed.exchange(json.dumps(self._manager.all_steps()))[0])
    for step in sorted(steps, reverse=True):
      try:
        flat, extra = self._read(step, want)
      except _Damaged as e:
        damaged[step] = e
        continue
      self._set_aside(damaged, step)
      return tree.unflatten(flat, like), extra
    reasons = "; ".join(f"step {step}: {e}" for step, e in damaged.items())
    raise InputError(
      f"no checkpoint in {self._directory} can be used ({reasons or 'there is none'}). "
      "Restore one from a backup, or start again in another --workdir"
    )

  def close(self):
    """Waits until everything is written."""
    self._manager.wait_until_finished()
    self._manager.close()

  def _read(self, step: int, want: dict):
    """(leaves, extra) of the checkpoint of a step.

    This calls Orbax's handlers and not its manager. The manager waits for all processes
    at the end, so it would never return if one of them failed on a damaged file.

    Args:
      step: which checkpoint to read.
      want: {path: shape, dtype and sharding of the leaf}.
    Raises:
      InputError: the checkpoint belongs to another config.
      _Damaged: at least one process found it damaged; raised in every process.
    """
    place = epath.Path(self._directory) / str(step)  # Orbax's handlers need this type
    with _same_everywhere():
      about = dict(ocp.JsonCheckpointHandler().restore(place / "extra"))
      crc32 = about.pop("crc32", None)
      if crc32 is None:
        raise ValueError("it has no checksums")
      if crc32 != json_file.crc32(about):
        raise ValueError("the checksum of extra differs")
    self._check_config(step, about["leaves"], want)
    with _same_everywhere():
      got = ocp.StandardCheckpointHandler().restore(
        place / "state", args=ocp.args.StandardRestore(want)
      )
    # Copied, because Orbax's arrays may share memory and a step donates its input.
    flat = {path: jnp.array(x) for path, x in got.items()}
    sums = jax.device_get(checksums(flat))
    wrong = [path for path in want if sums[path].tolist() != about["leaves"][path][2]]
    if wrong:
      more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
      raise _Damaged(f"the checksum of {wrong[0]}{more} differs")
    return flat, about["extra"]

  def _check_config(self, step, leaves, want):
    """Raises InputError at the first leaf whose shape or dtype differs from `want`."""
    there = {path: tuple(kind) for path, (*kind, _) in leaves.items()}
    here = {path: _kind(x) for path, x in want.items()}
    if there == here:
      return
    path = min(p for p in there.keys() | here if there.get(p) != here.get(p))
    old, new = (
      f"{kinds[path][1]}{kinds[path][0]}" if path in kinds else "missing"
      for kinds in (there, here)
    )
    raise InputError(
      f"cannot resume from step {step} in {self._directory}: {path} is {old} there and "
      f"{new} now. If the config's adapters or optimizer changed, use another --workdir"
    )

  def _set_aside(self, damaged, good):
    """Reports the damaged steps and renames them, so that they can be saved again."""
    if not damaged:
      return
    if distributed.is_main():
      for step, reason in damaged.items():
        place = self._directory / str(step)
        shutil.rmtree(f"{place}.damaged", ignore_errors=True)
        place.rename(f"{place}.damaged")
        console.note(
          f"the checkpoint of step {step} is damaged ({reason}); going back to step "
          f"{good}, keeping it as {place}.damaged"
        )
    distributed.barrier("set aside")
    self._manager.reload()


class _Damaged(Exception):
  """A checkpoint cannot be used; the message is the reason."""


class _same_everywhere:
  """A context: if its body fails in one process, all processes raise _Damaged."""

  def __enter__(self):
    return self

  def __exit__(self, _, e, __):
    if e is not None and not isinstance(e, Exception):
      return  # e.g. KeyboardInterrupt
    reason = "" if e is None else " ".join(f"{type(e).__name__}: {e}".split())[:200]
    reasons = [text for text in distributed.exchange(reason) if text]
    if reasons:
      raise _Damaged(reasons[0]) from e


@jax.jit
def checksums(flat):
  """{path: `_checksum` of the leaf}.

  All are one compiled program. With one program per leaf, two processes might run them
  in different orders, and their collectives would wait for each other forever.
  """
  return {path: _checksum(x) for path, x in flat.items()}


def _checksum(x):
  """A checksum uint32[2] of an array's elements and their positions.

  It is a sum of one hash per element, modulo 2**32. So every mesh and any number of
  processes give the same result, and no process needs more than its shards; CRC-32 or
  BLAKE2 would have to gather the array. Each hash is a bijection of an element's bits.
  A single damaged element of up to 4 bytes is therefore always detected; several are
  missed with a probability of 2**-64.

  Source: the finalizer of MurmurHash3 (Appleby, 2011).
  """
  size = x.dtype.itemsize
  if x.dtype == bool:
    words = x.astype(jnp.uint32)
  elif size == 8:  # becomes two words, along a new last axis
    words = jax.lax.bitcast_convert_type(x, jnp.uint32)
  else:
    unsigned = jnp.dtype(f"uint{8 * size}")
    words = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
  place, stride = jnp.zeros(words.shape, jnp.uint32), 1
  for axis in reversed(range(words.ndim)):
    index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    place += index * jnp.uint32(stride % 2**32)
    stride *= words.shape[axis]
  seeds = jnp.uint32(0x9E3779B9), jnp.uint32(0x7F4A7C15)
  hashes = tuple(_mix(words ^ _mix(place + seed)) for seed in seeds)
  # One reduction of both, so that XLA allocates no temporary of the array's size.
  zeros, axes = (jnp.uint32(0),) * 2, tuple(range(words.ndim))
  sums = jax.lax.reduce(hashes, zeros, lambda a, b: (a[0] + b[0], a[1] + b[1]), axes)
  return jnp.stack(sums)


def _mix(x):
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def _kind(x) -> tuple[str, str]:
  return str(tuple(x.shape)), str(x.dtype)
