"""Many processes as one program: they start, wait for each other, and stop together.

A run is fail-stop: if one process ends, all end, and whatever started them (`launch`,
SLURM, JobSet) starts them again. In a run of a single process, these functions return
at once; only `Stop` has work to do.

This module and `cluster` use jax._src. JAX has no public way to ask whether a cluster
is there, nor one to wait for other hosts without a collective on their devices.
"""

import ctypes
import itertools
import os
import signal
import sys
import time
import traceback
from typing import Any

import jax
from jax._src import distributed as _jax
from jax.experimental import multihost_utils

from jaxpeft.errors import InputError
from jaxpeft.parallel import cluster

CRASHED = 17  # exit status after an exception, where there are several processes
_BAD_INPUT = 2
_wait_s = 900  # seconds; `initialize` sets it
_numbers = itertools.count()  # a key of the coordination service works only once
_callbacks = []  # a callback that C code still calls must not be garbage-collected


def initialize(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  heartbeat_s: int,
  start_s: int,
  wait_s: int,
  end_s: int,
):
  """Connects to the other processes, if there are any; call it before JAX has devices.

  The arguments take precedence over JAXPEFT_COORDINATOR, JAXPEFT_NUM_PROCESSES and
  JAXPEFT_PROCESS_ID, which `launch` sets. Those take precedence over the cluster that
  JAX detects: SLURM, Open MPI, Cloud TPU or GKE. A single process connects to nothing.

  Args:
    coordinator: HOST:PORT of process 0.
    num_processes: how many there are; 1 also switches detection off.
    process_id: the number of this one, from 0.
    heartbeat_s: a process that is silent for so long counts as dead, and all end.
    start_s: how long to wait until the last process has started.
    wait_s: how long `barrier` and `exchange` wait for the last process.
    end_s: how long to wait at the end until the last process has finished.
  Raises:
    InputError: values are missing or contradict each other.
  """
  global _wait_s
  times = dict(heartbeat_s=heartbeat_s, start_s=start_s, wait_s=wait_s, end_s=end_s)
  for name, value in times.items():
    if value < 1:
      raise InputError(f"processes.{name} {value} is below 1")
  _wait_s = wait_s
  if _jax.global_state.client is not None:
    raise RuntimeError("distributed.initialize is called twice")
  timeouts: dict[str, Any] = dict(
    heartbeat_timeout_seconds=heartbeat_s,
    initialization_timeout=start_s,
    shutdown_timeout_seconds=end_s,
  )
  given = cluster.given(coordinator, num_processes, process_id)
  if given is not None:
    if given[1] > 1:
      jax.distributed.initialize(
        *given, cluster_detection_method="deactivate", **timeouts
      )
      _report_aborts()
    return
  found = cluster.detected()
  if found is None or found.get_process_count() == 1:
    return
  jax.distributed.initialize(
    local_device_ids=cluster.gpus_of_process(os.environ), **timeouts
  )
  _report_aborts()


def _report_aborts():
  """Prints one clear last line, and exits with 17, when JAX aborts this process.

  JAX aborts when another process has died.
  """
  line = (
    b"error: aborted, most likely because another process died or hangs: see above\n"
  )

  @ctypes.CFUNCTYPE(None, ctypes.c_int)
  def handler(_):
    os.write(2, line)
    os._exit(CRASHED)

  _callbacks.append(handler)
  ctypes.CDLL(None).signal(signal.SIGABRT, handler)


def count() -> int:
  """Number of processes; unlike jax.process_count(), this starts no backend."""
  return _jax.global_state.num_processes


def is_main() -> bool:
  """Whether this is process 0, the only one that prints and writes for people."""
  return _jax.global_state.process_id == 0


def barrier(name: str):
  """Waits until every process has called this.

  Call it after programs are compiled and before the first one runs. Otherwise a process
  that compiles longer than the others breaks their first collective: Gloo gives up on
  a late peer after 30 s, and NCCL has a limit too.
  """
  # Not sync_global_devices, which is a collective itself: Gloo would give up as well.
  client = _jax.global_state.client
  if client is not None:
    client.wait_at_barrier(f"jaxpeft/{name}/{next(_numbers)}", 1000 * _wait_s)


def exchange(text: str) -> list[str]:
  """The `text` of every process, in order; every process must make the same calls.

  Too slow for every step of a loop: it takes one network round trip per process.
  """
  client = _jax.global_state.client
  if client is None:
    return [text]
  place, limit = f"jaxpeft/exchange/{next(_numbers)}", 1000 * _wait_s
  client.key_value_set(f"{place}/{_jax.global_state.process_id}", text)
  return [client.blocking_key_value_get(f"{place}/{i}", limit) for i in range(count())]


class Stop:
  """Turns SIGTERM and SIGINT into a flag that a loop checks at every step.

  With several processes, a signal to one of them stops all at the same step: the
  SIGTERM handler of JAX's preemption service notifies the others, and they agree on the
  step after the most advanced one. SIGTERM must therefore keep that handler, and SIGINT
  is turned into SIGTERM. A check needs no communication.
  """

  def __init__(self):
    self.number = None  # of the signal; SIGTERM if another process received it
    self._several = _jax.global_state.client is not None
    if self._several:
      signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    else:
      for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, self._receive)

  def agreed(self, step: int) -> bool:
    """Whether to save and leave now; the answer is the same in every process.

    Args:
      step: steps taken so far. Every process must call this once for every step.
    """
    if self._several and multihost_utils.reached_preemption_sync_point(step):
      self.number = signal.SIGTERM
    return self.number is not None

  def close(self):
    """Lets signals end the process again; one that was not answered yet does so now."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if self.number is not None:
      os.kill(os.getpid(), self.number)

  def _receive(self, number, _):
    self.number = number


def end(e: BaseException):
  """Reports an exception and ends this process; returns if there are no others.

  Python's normal exit would take minutes: it waits for the other processes, which wait
  for this one in a collective. The status is 2 for bad input, as always, and 17 for
  what a restart may cure.
  """
  # All processes raise SystemExit together, so that Python's normal exit works.
  if _jax.global_state.client is None or isinstance(e, SystemExit):
    return
  if isinstance(e, InputError):
    print(f"error: {e}", file=sys.stderr, flush=True)
    status = _BAD_INPUT
    if is_main():  # process 0 serves the others, which may not have reported theirs yet
      time.sleep(2)
  else:
    traceback.print_exception(e)
    print("error: ended by the exception above; so will the others", file=sys.stderr)
    status = 130 if isinstance(e, KeyboardInterrupt) else CRASHED
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)
