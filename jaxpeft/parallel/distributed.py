"""Many processes as one program: start, wait for each other, stop together, fail fast.

Fail-stop: a run goes on in all processes or in none, and whoever started them starts
them again (`launch`, SLURM, JobSet). On a single process nothing here does anything.

This module and `gangs` use jax._src: there is no public way to find out whether there
is a cluster, or to wait for hosts without a collective on their devices.
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
_numbers = itertools.count()  # keys of the coordination service are used once
_kept = []  # what C code calls: collected, it would crash


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
  """Joins the other processes, if there are any; call it before JAX has devices.

  The arguments win over JAXPEFT_COORDINATOR, JAXPEFT_NUM_PROCESSES and
  JAXPEFT_PROCESS_ID, which `launch` sets, and those over what JAX detects: SLURM,
  Open MPI, Cloud TPU, GKE. Nothing is done if that gives one process.

  Args:
    coordinator: HOST:PORT of process 0.
    num_processes: how many there are; 1 also switches detection off.
    process_id: which of them this one is, from 0.
    heartbeat_s: silence after which a process counts as dead, and all end.
    start_s: how long to wait for the last one to come up.
    wait_s: how long `barrier` and `exchange` wait for the last one.
    end_s: how long to wait at the end for the last one to finish.
  Raises:
    InputError: if values are missing, or do not fit each other.
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
  told = cluster.given(coordinator, num_processes, process_id)
  if told is not None:
    if told[1] > 1:
      jax.distributed.initialize(
        *told, cluster_detection_method="deactivate", **timeouts
      )
      _tell_of_aborts()
    return
  found = cluster.detected()
  if found is None or found.get_process_count() == 1:
    return
  jax.distributed.initialize(
    local_device_ids=cluster.gpus_of_process(os.environ), **timeouts
  )
  _tell_of_aborts()


def _tell_of_aborts():
  """One clear last line, and status 17, where JAX aborts since another process died."""
  line = (
    b"error: aborted, most often since another process ended or is silent: see above\n"
  )

  @ctypes.CFUNCTYPE(None, ctypes.c_int)
  def handler(_):
    os.write(2, line)
    os._exit(CRASHED)

  _kept.append(handler)
  ctypes.CDLL(None).signal(signal.SIGABRT, handler)


def count() -> int:
  """How many processes there are; starts no backend, unlike jax.process_count()."""
  return _jax.global_state.num_processes


def is_main() -> bool:
  """Whether this is process 0, which alone writes what people read."""
  return _jax.global_state.process_id == 0


def barrier(name: str):
  """Waits for all processes, without their devices.

  Call it when programs are compiled, before the first one runs: Gloo and NCCL give up
  on a peer that comes to their first collective too late (Gloo after 30 s).
  """
  client = _jax.global_state.client
  if client is not None:
    client.wait_at_barrier(f"jaxpeft/{name}/{next(_numbers)}", 1000 * _wait_s)


def exchange(text: str) -> list[str]:
  """The `text` of every process, in order; all must call it as often.

  Not for steps of a loop: it is a round trip over the network for each process.
  """
  client = _jax.global_state.client
  if client is None:
    return [text]
  place, limit = f"jaxpeft/exchange/{next(_numbers)}", 1000 * _wait_s
  client.key_value_set(f"{place}/{_jax.global_state.process_id}", text)
  return [client.blocking_key_value_get(f"{place}/{i}", limit) for i in range(count())]


class Stop:
  """SIGTERM and SIGINT as a question that the loop asks at each step.

  With several processes, a signal to one of them stops all at the same step: JAX's
  preemption service has a handler for SIGTERM that tells the others and settles on the
  step behind the furthest one. So SIGTERM must keep that handler, and SIGINT is turned
  into SIGTERM. Asking costs no communication.
  """

  def __init__(self):
    self.number = None  # of the signal that this process received, or SIGTERM
    self._several = _jax.global_state.client is not None
    if self._several:
      signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    else:
      for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, self._receive)

  def agreed(self, step: int) -> bool:
    """Whether to save and leave now: the same answer everywhere.

    Args:
      step: the steps taken; every process asks once for every step.
    """
    if self._several and multihost_utils.reached_preemption_sync_point(step):
      self.number = signal.SIGTERM
    return self.number is not None

  def close(self):
    """Signals end the process again; so does one that came since the last question."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if self.number is not None:
      os.kill(os.getpid(), self.number)

  def _receive(self, number, _):
    self.number = number


def end(e: BaseException):
  """Tells what went wrong and ends this process, if there are others; else returns.

  Python's own exit would wait for the others, which wait for this one in a collective:
  minutes. Status 2 is for bad input, as ever; 17 for what a restart may cure.
  """
  # SystemExit is a decision that all processes take.
  if _jax.global_state.client is None or isinstance(e, SystemExit):
    return
  if isinstance(e, InputError):
    print(f"error: {e}", file=sys.stderr, flush=True)
    status = _BAD_INPUT
    if is_main():  # it answers the others, who may still be asking what is wrong
      time.sleep(2)
  else:
    traceback.print_exception(e)
    print("error: ended by the exception above; so will the others", file=sys.stderr)
    status = 130 if isinstance(e, KeyboardInterrupt) else CRASHED
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)
