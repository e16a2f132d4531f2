"""Starts, watches and restarts a group of processes on one machine.

On one machine this does what a scheduler does on a cluster, so that a run of several
processes can be tried on a laptop and in tests.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time

from jaxpeft.errors import InputError
from jaxpeft.parallel import cluster

_BAD_INPUT = 2  # exit status that no restart would change
_GRACE_S = 2.0  # after a crash, so that the others can still print their errors
_writing = threading.Lock()  # so that lines of several processes do not mix
_STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT)  # saved after a signal


def launch(command, processes=1, max_restarts=0, devices_per_process=None) -> int:
  """Runs `command` in several connected processes; returns the exit status.

  Each process gets JAXPEFT_COORDINATOR, JAXPEFT_NUM_PROCESSES and JAXPEFT_PROCESS_ID,
  an equal share of the machine's GPUs, and the number of restarts so far in
  JAXPEFT_RESTART. Every output line of process i > 0 starts with [i].

  If one process crashes, all are killed and started again. SIGTERM and SIGINT are
  passed on to the processes; a second signal kills them. If this process dies, even by
  SIGKILL, Linux kills the processes that it started. Their own children, and processes
  on other systems, are only sure to end if this process gets SIGTERM or SIGINT. Give
  the program itself, not a shell around it: the shell would end at the signal, before
  the program has saved.

  Args:
    command: program and arguments.
    processes: how many to start.
    max_restarts: how often to start again before giving up.
    devices_per_process: CPU devices of each process; None leaves its devices to JAX.
  Returns:
    0 if all processes ended with 0; 2, without a restart, if one ended with 2 (bad
    input); 128 + N if signal N stopped them; otherwise the status of the process that
    crashed first.
  Raises:
    InputError: a number is too small, the GPUs cannot be shared equally, or the program
      does not exist.
  """
  if not command:
    raise InputError("launch what? Give: launch -n 2 -- python train.py --config=...")
  for name, value, least in (
    ("-n", processes, 1),
    ("--max-restarts", max_restarts, 0),
    ("--devices-per-process", devices_per_process, 1),
  ):
    if value is not None and value < least:
      raise InputError(f"{name} {value} is less than {least}")
  received = []
  old = {
    number: signal.signal(number, lambda number, _: received.append(number))
    for number in (signal.SIGTERM, signal.SIGINT)
  }
  try:
    for restart in range(max_restarts + 1):
      group = _Group(command, processes, restart, devices_per_process)
      try:
        status = group.watch(received)
      finally:
        group.kill()
      crashed = status not in (0, _BAD_INPUT, *_STOPPED) and not received
      if not crashed:
        break
      if restart < max_restarts:
        _say(f"restart {restart + 1} of {max_restarts}")
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)
  return status


class _Group:
  """The processes of one attempt, from their start to their end."""

  def __init__(self, command, count, restart, devices):
    with socket.socket() as s:  # a new port for each attempt: the old one may be in use
      s.bind(("127.0.0.1", 0))
      port = s.getsockname()[1]
    self._processes, self._threads = [], []
    for i in range(count):
      env = dict(
        os.environ,
        JAXPEFT_COORDINATOR=f"127.0.0.1:{port}",
        JAXPEFT_NUM_PROCESSES=str(count),
        JAXPEFT_PROCESS_ID=str(i),
        JAXPEFT_RESTART=str(restart),
        PYTHONUNBUFFERED="1",  # otherwise a crash loses the last lines
      )
      if devices is not None:
        env |= dict(JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES=str(devices))
      gpus = cluster.visible_gpus(env)
      if gpus and count > 1:
        env["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, cluster.share(gpus, count, i)))
      sinks = dict(stdout=sys.stdout, stderr=sys.stderr)
      if i == 0:  # writes to a terminal itself, so that its progress bar works
        sinks = {name: sink for name, sink in sinks.items() if not sink.isatty()}
      try:
        process = subprocess.Popen(
          command,
          env=env,
          stdin=subprocess.DEVNULL,
          start_new_session=True,  # killed as a group; only this process gets Ctrl-C
          preexec_fn=_die_with_parent(os.getpid()),
          stdout=subprocess.PIPE if "stdout" in sinks else None,
          stderr=subprocess.PIPE if "stderr" in sinks else None,
        )
      except OSError as e:
        self.kill()
        raise InputError(f"cannot start {command[0]}: {e.strerror}") from e
      self._processes.append(process)
      for name, sink in sinks.items():
        args = getattr(process, name), sink, f"[{i}] " if i else ""
        # A daemon, since a grandchild may hold the pipe open.
        thread = threading.Thread(target=_forward, args=args, daemon=True)
        thread.start()
        self._threads.append(thread)

  def watch(self, received) -> int:
    """Waits for the end and passes signals on; returns the status of `launch`."""
    first, deadline, passed_on = None, 0.0, 0
    while True:
      statuses = [p.poll() for p in self._processes]
      if first is None:
        crashed = [i for i, x in enumerate(statuses) if x not in (None, 0, *_STOPPED)]
        if crashed:
          first, deadline = crashed[0], time.monotonic() + _GRACE_S
      late = first is not None and not received and time.monotonic() > deadline
      if late or _BAD_INPUT in statuses or None not in statuses:
        break
      for number in received[passed_on:]:
        passed_on += 1
        self._signal(number if passed_on == 1 else signal.SIGKILL)
      time.sleep(0.1)
    if _BAD_INPUT in statuses:  # whose end may have crashed the others
      return _BAD_INPUT
    if first is not None:
      status = statuses[first]
      if received and status == -received[0]:  # it had no signal handler yet
        return 128 + received[0]
      ends = (
        f"process {i} ended " + (f"with status {x}" if x > 0 else f"by signal {-x}")
        for i, x in enumerate(statuses)
        if x not in (None, 0, *_STOPPED)
      )
      _say(", ".join(ends))
      return status if status > 0 else 128 - status
    return max(statuses)

  def kill(self):
    """Kills what still runs, and waits until it has ended."""
    self._signal(signal.SIGKILL)
    for process in self._processes:
      process.wait()
    for thread in self._threads:
      thread.join(timeout=5)

  def _signal(self, number):
    for process in self._processes:
      # To the process group, so that it reaches grandchildren, even of a dead child.
      if process.poll() is None or number == signal.SIGKILL:
        try:
          os.killpg(process.pid, number)
        except ProcessLookupError:
          pass


def _die_with_parent(parent: int):
  """A `preexec_fn` that has Linux kill the child if its parent dies. None elsewhere."""
  if sys.platform != "linux":
    return None
  libc = ctypes.CDLL(None)  # here, since dlopen is unsafe after the fork

  def prepare():
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # the parent died before prctl
      os._exit(1)

  return prepare


def _forward(source, sink, prefix):
  """Copies lines from a process's output to ours, each with a prefix."""
  for line in source:
    with _writing:
      sink.write(prefix + line.decode(errors="replace"))
      sink.flush()


def _say(text):
  print(f"launch: {text}", file=sys.stderr, flush=True)
