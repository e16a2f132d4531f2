"""What tests/parallel runs in several processes: python processes.py JSON.

Ten steps that add up numbers of all devices, x += sum(x) / x.size + 1, with a
checkpoint after every second, and one mishap: {"what": "SIGKILL", "process": 1,
"step": 5} happens in that process when so many steps are done, unless it was restarted.
After a restart, {"unreadable": 1} keeps process 1 from reading the newest checkpoint.
{"processes": {"heartbeat_s": 5}} changes the config's section of that name.
{"late": 1} has process 1 compile for long; {"careless": true} does not wait for it.
{"steps": 10000, "pause": 0.2} are steps that only a signal ends.
"""

import json
import os
import pathlib
import signal
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from ml_collections import config_dict

from jaxpeft import cli, config, console
from jaxpeft.checkpoints import run_state as checkpoints
from jaxpeft.errors import InputError
from jaxpeft.parallel import distributed
from jaxpeft.training import workdir as workdirs

STEPS = 10
LATE_S = 60  # Gloo gives up on a first collective after 30


class State(NamedTuple):
  step: jax.Array
  x: jax.Array


def mishap(what, step):
  if what in ("SIGKILL", "SIGSTOP"):
    os.kill(os.getpid(), getattr(signal, what))
  elif what == "raise":
    raise RuntimeError("one process alone has this")
  elif what == "bad input":
    raise InputError("one process alone was given this")
  elif what in ("SIGTERM", "SIGINT"):
    os.kill(os.getpid(), getattr(signal, what))
    print(f"{what} before step {step}", flush=True)


def break_disk(step):
  """Reading this step's arrays fails, in this process alone."""
  read = ocp.StandardCheckpointHandler.restore

  def restore(self, directory, **kwargs):
    if directory.parent.name == str(step):
      raise OSError("a disk of this machine is broken")
    return read(self, directory, **kwargs)

  ocp.StandardCheckpointHandler.restore = restore


def main(o):
  restarted = os.environ.get("JAXPEFT_RESTART", "0") != "0"
  console.note(f"{distributed.count()} processes, {jax.device_count()} devices")
  if "seeds" in o:
    given = config_dict.ConfigDict(dict(seed=o["seeds"][jax.process_index()], adapt={}))
    workdirs.prepare(o["workdir"], given)
  mesh = jax.make_mesh((jax.device_count(),), ("all",))
  spec = jax.sharding.PartitionSpec
  split, whole = (jax.sharding.NamedSharding(mesh, spec(*s)) for s in (("all",), ()))
  kinds = State(whole, split)

  def start():
    return State(jnp.int32(0), jnp.arange(16.0).reshape(8, 2))

  def step(state):
    return State(state.step + 1, state.x + state.x.sum() / state.x.size + 1)

  state = jax.jit(start, out_shardings=kinds)()
  step_fn = jax.jit(step, out_shardings=kinds, donate_argnums=0).lower(state).compile()
  if o.get("late") == jax.process_index():
    time.sleep(LATE_S)
  if not o.get("careless"):
    distributed.barrier("compiled")
  store = None
  if o.get("directory"):
    store = checkpoints.Checkpoints(pathlib.Path(o["directory"]))
    if restarted and o.get("unreadable") == jax.process_index():
      break_disk(store.latest)
    if store.latest is not None:
      state, extra = store.restore(state)
      assert extra["x"] == int(state.step)
      print(f"resumed at step {int(state.step)}", flush=True)
  stop = distributed.Stop()
  at = int(state.step)
  while at < o.get("steps", STEPS):
    here = o.get("process") == jax.process_index() and o.get("step") == at
    if here and not restarted:
      mishap(o["what"], at)
    time.sleep(o.get("pause", 0))
    state = step_fn(state)
    at += 1
    leave = stop.agreed(at)
    if store and (at % 2 == 0 or leave):
      store.save(state, dict(x=at))
    if leave:
      if store:
        store.close()
      print(f"left at step {at}", flush=True)
      sys.exit(128 + stop.number)
  if store:
    store.close()
  total = jax.jit(jnp.sum, out_shardings=whole)(state.x)
  print(f"sum {float(total)}", flush=True)


if __name__ == "__main__":
  options = json.loads(sys.argv[1])
  with cli.one_clear_line():
    limits = dict(heartbeat_s=60, start_s=300) | options.get("processes", {})
    distributed.initialize(**(dict(config.base().processes) | limits))
    main(options)
