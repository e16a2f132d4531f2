"""A gang of processes on one machine: started, watched, and restarted, together.

What a scheduler does for many machines, for one: the laptop's way to try a run of
several processes, and the one that tests use.
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

_BAD_INPUT = 2  # exit status: another try would end the same
_GRACE_S = 2.0  # after a death, for the others to say why they die too
_writing = threading.Lock()
_STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT)  # "saved, as asked to"


def launch(command, processes=1, max_restarts=0, devices_per_process=None) -> int:
  """Runs `command` in several processes that find each other; returns exit status.

  They get JAXPEFT_COORDINATOR, JAXPEFT_NUM_PROCESSES and JAXPEFT_PROCESS_ID, equal
  shares of the machine's GPUs, and JAXPEFT_RESTART, the restarts so far. Lines of all
  but process 0 begin with the process's number.

  If one crashes, all are killed and started again. SIGTERM and SIGINT are passed on,
  a second one kills. When this process dies, even by SIGKILL, Linux kills those that
  it started; elsewhere, and for what they started themselves, only SIGTERM and SIGINT
  leave nothing behind. (A signal ends a shell around the program before the program
  has saved: give the program itself.)

  Args:
    command: program and arguments.
    processes: how many.
    max_restarts: after so many, the first crash's status is returned.
    devices_per_process: if given, each has so many CPU devices, and no others.
  Returns:
    0 if all ended with 0; 2 if one did, without restart; 128 + N if signal N stopped
    them; otherwise that of the process that crashed first.
  Raises:
    InputError: if the numbers are no good, GPUs cannot be shared, or there is no such
      program.
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
      gang = _Gang(command, processes, restart, devices_per_process)
      try:
        status = gang.watch(received)
      finally:
        gang.kill()
      crashed = status not in (0, _BAD_INPUT, *_STOPPED) and not received
      if not crashed:
        break
      if restart < max_restarts:
        _say(f"restart {restart + 1} of {max_restarts}")
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)
  return status


class _Gang:
  """One try."""

  def __init__(self, command, count, restart, devices):
    with socket.socket() as s:  # a new port: the old one may still be waiting
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
        PYTHONUNBUFFERED="1",  # what a crash leaves unsaid is what one wants to know
      )
      if devices is not None:
        env |= dict(JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES=str(devices))
      gpus = cluster.visible_gpus(env)
      if gpus and count > 1:
        env["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, cluster.share(gpus, count, i)))
      sinks = dict(stdout=sys.stdout, stderr=sys.stderr)
      if i == 0:  # to a terminal itself, for its progress bar; else by whole lines
        sinks = {name: sink for name, sink in sinks.items() if not sink.isatty()}
      try:
        process = subprocess.Popen(
          command,
          env=env,
          stdin=subprocess.DEVNULL,
          start_new_session=True,  # a group to kill; Ctrl-C comes from here, once
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
    """Waits for the end, passing on signals; the status of `launch`."""
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
    if _BAD_INPUT in statuses:  # the others may have died of this one's end
      return _BAD_INPUT
    if first is not None:
      status = statuses[first]
      if received and status == -received[0]:  # no handler yet
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
    """Leaves no process behind."""
    self._signal(signal.SIGKILL)
    for process in self._processes:
      process.wait()
    for thread in self._threads:
      thread.join(timeout=5)

  def _signal(self, number):
    for process in self._processes:
      # The group: also what a process started, be it over itself.
      if process.poll() is None or number == signal.SIGKILL:
        try:
          os.killpg(process.pid, number)
        except ProcessLookupError:
          pass


def _die_with_parent(parent: int):
  """For a child before its exec: the kernel kills it when its parent ends (Linux)."""
  if sys.platform != "linux":
    return None
  libc = ctypes.CDLL(None)  # here, since a child should not import

  def prepare():
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it ended before
      os._exit(1)

  return prepare


def _forward(source, sink, prefix):
  for line in source:
    with _writing:
      sink.write(prefix + line.decode(errors="replace"))
      sink.flush()


def _say(text):
  print(f"launch: {text}", file=sys.stderr, flush=True)
