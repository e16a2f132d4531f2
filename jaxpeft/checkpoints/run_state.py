"""The state of a run, by Orbax: asynchronous, atomic, verified; the newest two stay.

Only what training changes is saved: trainable partition, optimizer state, step. The
data position is the step, and the frozen partition is recognised by its fingerprint.

Orbax has no checksums: a flipped byte comes back as a wrong weight, silently. So each
leaf's is kept in a JSON item of the same checkpoint, and a checkpoint that fails is
skipped, with a line that says so, for the one before it.
"""

import json
import logging
import pathlib
import shutil
import zlib

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from jaxpeft import console, tree
from jaxpeft.errors import InputError
from jaxpeft.parallel import distributed

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax narrates every step


class Checkpoints:
  """The checkpoints of one run directory. Close it, to finish what is being written."""

  def __init__(self, directory: pathlib.Path):
    self._directory = directory.absolute()
    self._directory.mkdir(parents=True, exist_ok=True)
    # Named processes make Orbax wait over the network; else it does so by a collective
    # on the devices, which fails where one process comes 30 s later than another.
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
    """The newest step that is there, or None; `restore` finds out if it is good."""
    return self._manager.latest_step()

  def save(self, state, extra: dict):
    """Starts to save the state of its step; `extra` is a small JSON value.

    Every process calls it. The arrays may be donated as soon as it returns.
    """
    step = int(state.step)
    if step == self.latest:
      return
    flat = tree.flatten(state)
    sums = jax.device_get(_checksums(flat))
    leaves = {path: [*_kind(x), sums[path].tolist()] for path, x in flat.items()}
    about = dict(extra=extra, leaves=leaves)
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(flat),
      extra=ocp.args.JsonSave(about | dict(crc32=_crc32(about))),
    )
    self._manager.save(step, args=args, force=True)

  def restore(self, like):
    """(state, extra) of the newest good step, with the structure of `like`.

    Every process calls it, and all get the same step. Damaged ones that are newer are
    renamed to STEP.damaged, so that these steps can be saved again.

    Raises:
      InputError: if it has other leaves, i.e. belongs to another config; if none is
        good.
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
      "Put a copy of one there, or start in another --workdir"
    )

  def close(self):
    """Waits until everything is written."""
    self._manager.wait_until_finished()
    self._manager.close()

  def _read(self, step: int, want: dict):
    """(leaves, extra) of a step.

    Orbax's handlers, not its manager: that one waits for all processes at the end,
    and would wait for ever for one that met a damaged file.

    Raises:
      InputError: if it is good, but of another config.
      _Damaged: in all processes, if it is damaged in the eyes of one.
    """
    place = epath.Path(self._directory) / str(step)  # what Orbax's handlers take
    with _same_everywhere():
      about = dict(ocp.JsonCheckpointHandler().restore(place / "extra"))
      crc32 = about.pop("crc32", None)
      if crc32 is None:
        raise ValueError("it has no checksums")
      if crc32 != _crc32(about):
        raise ValueError("the checksum of extra differs")
    self._check_config(step, about["leaves"], want)
    with _same_everywhere():
      got = ocp.StandardCheckpointHandler().restore(
        place / "state", args=ocp.args.StandardRestore(want)
      )
    # A copy: what Orbax gives may share memory, and steps donate their input.
    flat = {path: jnp.array(x) for path, x in got.items()}
    sums = jax.device_get(_checksums(flat))
    wrong = [path for path in want if sums[path].tolist() != about["leaves"][path][2]]
    if wrong:
      more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
      raise _Damaged(f"the checksum of {wrong[0]}{more} differs")
    return flat, about["extra"]

  def _check_config(self, step, leaves, want):
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
    """Tells about damaged steps, and gives their names free."""
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
  """A checkpoint that cannot be used: why."""


class _same_everywhere:
  """Whatever fails in one process is _Damaged in all of them."""

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
def _checksums(flat):
  """{path: `_checksum`}, in one program: of several, each with its collectives, two
  processes may run different ones first, and wait for each other for ever."""
  return {path: _checksum(x) for path, x in flat.items()}


def _checksum(x):
  """uint32[2] of an array's bits and their places.

  A sum of hashes modulo 2**32: any mesh and any number of processes, each of which
  sees only its shards, gives the same, and no array is gathered, as CRC-32 or BLAKE2
  would need. Each hash is a bijection of the number's bits (MurmurHash3's finaliser),
  so that one damaged number is found for certain, and more but for 2**-64.
  """
  size = x.dtype.itemsize
  if x.dtype == bool:
    words = x.astype(jnp.uint32)
  elif size == 8:  # a further axis of two
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
  # Both in one reduction: nothing of the array's size is made beside it.
  zeros, axes = (jnp.uint32(0),) * 2, tuple(range(words.ndim))
  sums = jax.lax.reduce(hashes, zeros, lambda a, b: (a[0] + b[0], a[1] + b[1]), axes)
  return jnp.stack(sums)


def _mix(x):
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def _crc32(value) -> int:
  read = json.loads(json.dumps(value))  # keys that are no strings become such
  return zlib.crc32(json.dumps(read, sort_keys=True).encode())


def _kind(x) -> tuple[str, str]:
  return str(tuple(x.shape)), str(x.dtype)
