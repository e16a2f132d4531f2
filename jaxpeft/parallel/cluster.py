"""Finds out which processes form one run: from arguments, environment or scheduler."""

import glob
import importlib.util
import os
import re

from jax._src import clusters

from jaxpeft.errors import InputError


def given(coordinator, num_processes, process_id):
  """(coordinator, num_processes, process_id) from arguments or environment, or None.

  Raises:
    InputError: only some of them are given, or a value is invalid.
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


def detected():
  """JAX's description of the cluster that this process is part of, or None."""
  for kind in clusters.ClusterEnv._cluster_types:
    if kind.opt_in_only_method:
      continue
    if kind.__name__ == "K8sCluster" and not (
      "JOB_COMPLETION_INDEX" in os.environ and importlib.util.find_spec("kubernetes")
    ):
      continue  # the pod of a notebook, for which JAX would print a warning
    if kind.is_env_present():
      return kind
  return None


def gpus_of_process(env) -> list[int] | None:
  """Indices of this process's GPUs under SLURM or Open MPI; None leaves it to JAX.

  JAX assumes one process per GPU. With a single process on a machine with eight GPUs,
  it would silently use GPU 0 only.
  """
  gpus = visible_gpus(env)
  if not gpus or env.get("JAX_LOCAL_DEVICE_IDS"):
    return None
  if "SLURM_STEP_TASKS_PER_NODE" in env and "SLURM_LOCALID" in env:
    tasks = _tasks(env["SLURM_STEP_TASKS_PER_NODE"], int(env.get("SLURM_NODEID", 0)))
    if gpus < int(env.get("SLURM_GPUS_ON_NODE", gpus)):
      return list(range(gpus))  # --gpus-per-task hides the GPUs of other processes
    return share(gpus, tasks, int(env["SLURM_LOCALID"]))
  if "OMPI_COMM_WORLD_LOCAL_SIZE" in env:
    tasks, index = (env[f"OMPI_COMM_WORLD_LOCAL_{x}"] for x in ("SIZE", "RANK"))
    return share(gpus, int(tasks), int(index))
  return None


def visible_gpus(env) -> int:
  """Number of NVIDIA GPUs that this environment makes visible; needs no driver."""
  if env.get("JAX_PLATFORMS") == "cpu":
    return 0
  named = env.get("CUDA_VISIBLE_DEVICES")
  if named is not None:
    return len([name for name in named.split(",") if name.strip() not in ("", "-1")])
  return len(glob.glob("/dev/nvidia[0-9]*"))


def share(gpus: int, processes: int, index: int) -> list[int]:
  """Indices of the machine's GPUs that its process `index` uses.

  Raises:
    InputError: the GPUs cannot be shared equally.
  """
  if gpus % processes:
    raise InputError(
      f"{processes} processes cannot share {gpus} GPUs of one machine equally; "
      "start one process on each machine, or one for each GPU"
    )
  each = gpus // processes
  return list(range(index * each, (index + 1) * each))


def _tasks(text: str, node: int) -> int:
  """Tasks on a node. SLURM's "2(x3),1" means two on nodes 0 to 2 and one on node 3."""
  counts = []
  for part in text.split(","):
    number, _, times = part.removesuffix(")").partition("(x")
    counts += [int(number)] * int(times or 1)
  return counts[node]
