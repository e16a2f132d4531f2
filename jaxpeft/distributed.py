"""Many processes as one program: start, wait for each other, stop together, fail fast.

Fail-stop: a run goes on in all processes or in none, and whoever started them starts
them again (`launch`, SLURM, JobSet). On a single process nothing here does anything.

This is the one module that uses jax._src: there is no public way to find out whether
there is a cluster, or to wait for hosts without a collective on their devices.
"""

import contextlib
import glob
import importlib.util
import itertools
import os
import re
import signal
import sys
import time
import traceback

import jax
from jax._src import clusters
from jax._src import distributed as _jax

from jaxpeft.errors import InputError

CRASHED = 17  # exit status after an exception, where there are several processes
_BAD_INPUT = 2
_wait_s = None  # as initialize was told
_numbers = itertools.count()  # keys of the coordination service are used once


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
  timeouts = dict(
    heartbeat_timeout_seconds=heartbeat_s,
    initialization_timeout=start_s,
    shutdown_timeout_seconds=end_s,
  )
  given = _given(coordinator, num_processes, process_id)
  if given is not None:
    if given[1] > 1:
      jax.distributed.initialize(
        *given, cluster_detection_method="deactivate", **timeouts
      )
    return
  cluster = _cluster()
  if cluster is None or cluster.get_process_count() == 1:
    return
  jax.distributed.initialize(local_device_ids=_cluster_gpus(os.environ), **timeouts)


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
    if self._several and _jax.global_state.preemption_sync_manager.reached_sync_point(
      step
    ):
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


@contextlib.contextmanager
def one_clear_exit():
  """Where there are several processes, an exception ends this one at once: `end`."""
  try:
    yield
  except BaseException as e:
    end(e)
    raise


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
    status = 130 if isinstance(e, KeyboardInterrupt) else CRASHED
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def visible_gpus(env) -> int:
  """How many NVIDIA GPUs a process with this environment may use; needs no driver."""
  if env.get("JAX_PLATFORMS") == "cpu":
    return 0
  named = env.get("CUDA_VISIBLE_DEVICES")
  if named is not None:
    return len([name for name in named.split(",") if name.strip() not in ("", "-1")])
  return len(glob.glob("/dev/nvidia[0-9]*"))


def share(gpus: int, processes: int, index: int) -> list[int]:
  """Which of a machine's GPUs belong to its process `index`.

  Raises:
    InputError: if they cannot be shared equally.
  """
  if gpus % processes:
    raise InputError(
      f"{processes} processes cannot share {gpus} GPUs of one machine equally; "
      "start one process on each machine, or one for each GPU"
    )
  each = gpus // processes
  return list(range(index * each, (index + 1) * each))


def _given(coordinator, num_processes, process_id):
  """(coordinator, num_processes, process_id) from arguments and environment, or None.

  Raises:
    InputError: if only some are there, or one is no sensible value.
  """
  values = {}
  for name, value in (
    ("coordinator", coordinator),
    ("num_processes", num_processes),
    ("process_id", process_id),
  ):
    value = os.environ.get(f"JAXPEFT_{name.upper()}") if value is None else value
    if value not in (None, ""):
      values[name] = value
  if not values:
    return None
  for name in values.keys() & {"num_processes", "process_id"}:
    try:
      values[name] = int(values[name])
    except ValueError as e:
      raise InputError(f"{name} = {values[name]!r} is no number") from e
  if values.get("num_processes") == 1 and not values.get("process_id"):
    return values.get("coordinator"), 1, 0
  missing = {"coordinator", "num_processes", "process_id"} - values.keys()
  if missing:
    raise InputError(
      f"several processes need {' and '.join(sorted(missing))} too: "
      "--coordinator=HOST:PORT --num_processes=N --process_id=I, or "
      "JAXPEFT_COORDINATOR, JAXPEFT_NUM_PROCESSES and JAXPEFT_PROCESS_ID"
    )
  address, n, i = values["coordinator"], values["num_processes"], values["process_id"]
  if not re.fullmatch(r".+:\d+", address):
    raise InputError(f"coordinator {address!r} is not HOST:PORT")
  if not 0 <= i < n:
    raise InputError(f"process_id {i} is not from 0 to num_processes - 1 = {n - 1}")
  return address, n, i


def _cluster():
  """JAX's description of the cluster that this process is part of, or None."""
  for kind in clusters.ClusterEnv._cluster_types:
    if kind.opt_in_only_method:
      continue
    if kind.__name__ == "K8sCluster" and not (
      "JOB_COMPLETION_INDEX" in os.environ and importlib.util.find_spec("kubernetes")
    ):
      continue  # a notebook's pod is no cluster, and not worth a warning
    if kind.is_env_present():
      return kind
  return None


def _cluster_gpus(env) -> list[int] | None:
  """GPUs of this process under SLURM or Open MPI; None leaves it to JAX.

  JAX takes one process for each GPU for granted: with one process on a machine of
  eight, it would use GPU 0 only and say nothing.
  """
  gpus = visible_gpus(env)
  if not gpus or env.get("JAX_LOCAL_DEVICE_IDS"):
    return None
  if "SLURM_STEP_TASKS_PER_NODE" in env and "SLURM_LOCALID" in env:
    tasks = _tasks(env["SLURM_STEP_TASKS_PER_NODE"], int(env.get("SLURM_NODEID", 0)))
    if gpus < int(env.get("SLURM_GPUS_ON_NODE", gpus)):
      return list(range(gpus))  # --gpus-per-task: the others' are hidden already
    return share(gpus, tasks, int(env["SLURM_LOCALID"]))
  if "OMPI_COMM_WORLD_LOCAL_SIZE" in env:
    tasks, index = (env[f"OMPI_COMM_WORLD_LOCAL_{x}"] for x in ("SIZE", "RANK"))
    return share(gpus, int(tasks), int(index))
  return None


def _tasks(text: str, node: int) -> int:
  """Tasks on a node, from SLURM's "2(x3),1": nodes 0 to 2 have two, node 3 has one."""
  counts = []
  for part in text.split(","):
    number, times = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part).groups()
    counts += [int(number)] * int(times or 1)
  return counts[node]
