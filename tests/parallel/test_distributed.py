"""Several processes as one program: found, in step, stopped and ended together.

The time limits only keep a hang from hanging the suite: what they must tell apart is
seconds from for ever.
"""

import argparse
import inspect
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
from unittest import mock

import jax
import pytest
from jax._src import distributed as _jax

from jaxpeft import cli, config
from jaxpeft.errors import InputError
from jaxpeft.parallel import cluster, distributed
from jaxpeft.training import workdir as workdirs

ROOT = pathlib.Path(__file__).parents[2]
LIMIT_S = 400


def together(count, silent=None, **options):
  """(status, stdout, stderr) of `count` processes, started as SLURM does.

  Process `silent` does not end by itself: it is killed when the others have ended.
  """
  with socket.socket() as s:
    s.bind(("", 0))
    port = s.getsockname()[1]
  common = os.environ | dict(
    PYTHONPATH=str(ROOT),
    JAX_PLATFORMS="cpu",
    JAX_NUM_CPU_DEVICES="2",
    JAX_COORDINATOR_PORT=str(port),
    SLURM_JOB_ID="17",
    SLURM_STEP_NODELIST="localhost",
    SLURM_NTASKS=str(count),
    SLURM_STEP_TASKS_PER_NODE=str(count),
  )
  command = [
    sys.executable,
    ROOT / "tests" / "support" / "processes.py",
    json.dumps(options),
  ]
  processes = [
    subprocess.Popen(
      command,
      env=common | dict(SLURM_PROCID=str(i), SLURM_LOCALID=str(i)),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(count)
  ]
  try:
    texts = {
      i: p.communicate(timeout=LIMIT_S) for i, p in enumerate(processes) if i != silent
    }
  finally:
    for p in processes:
      p.kill()
  if silent is not None:
    texts[silent] = processes[silent].communicate()
  return [(p.returncode, *texts[i]) for i, p in enumerate(processes)]


def test_one_task_of_slurm_is_a_single_process():
  [(status, out, err)] = together(1)
  assert status == 0, err
  assert "1 processes, 2 devices" in err
  assert "sum 139248.0" in out


@pytest.mark.slow
@pytest.mark.parametrize(
  ("what", "process"), [("SIGKILL", 1), ("SIGSTOP", 0), ("SIGSTOP", 1)]
)
def test_when_one_is_dead_or_silent_the_other_ends(what, process):
  silent = process if what == "SIGSTOP" else None
  limits = dict(heartbeat_s=20, start_s=LIMIT_S)
  got = together(2, silent, what=what, process=process, step=4, processes=limits)
  assert got[process][0] == -9
  status, out, err = got[1 - process]
  assert status == distributed.CRASHED, err
  assert err.strip().splitlines()[-1].startswith("error: "), err
  assert "sum" not in out


@pytest.mark.slow
@pytest.mark.parametrize("careless", [False, True])
def test_a_first_collective_waits_for_who_compiles_longer(careless):
  """As Gloo alone does not: it gives up after 30 seconds."""
  for status, out, err in together(2, late=1, careless=careless):
    if careless:
      assert status == distributed.CRASHED, err
    else:
      assert status == 0, err
      assert "sum 139248.0" in out


def test_a_signal_to_one_stops_both_at_the_same_step(tmp_path):
  workdir = dict(workdir=str(tmp_path / "w"), seeds=[1, 1])
  mishap = dict(what="SIGTERM", process=1, step=2, steps=10_000, pause=0.2)
  first, second = together(2, **workdir, **mishap)
  assert first[0] == second[0] == 128 + 15, first[2] + second[2]
  assert "2 processes, 4 devices" in first[2]
  assert "2 processes" not in second[2]
  left = [line for line in first[1].splitlines() if "left" in line]
  assert len(left) == 1
  assert left[0] in second[1].splitlines()


def test_processes_of_different_configs_are_bad_input(tmp_path):
  for status, _, err in together(2, workdir=str(tmp_path / "w"), seeds=[1, 2]):
    assert status == 2, err
    assert "holds a run of another config (seed: 1 there, 2 now)" in err


def test_alone_nothing_is_done():
  for e in (KeyError("as ever"), InputError("for the command to tell")):
    distributed.end(e)
  distributed.barrier("nobody")
  assert distributed.exchange("x") == ["x"]
  assert distributed.count() == 1
  assert distributed.is_main()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_after_the_last_question_is_not_lost(number):
  code = f"""
import os
from jaxpeft.parallel import distributed
stop = distributed.Stop()
os.kill(os.getpid(), {int(number)})
print("saved")
stop.close()
print("went on")
"""
  got = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
  )
  assert got.stdout == "saved\n"
  assert got.returncode == -number, got.stderr
  assert ("KeyboardInterrupt" in got.stderr) == (number == signal.SIGINT)


@pytest.fixture
def _bare(monkeypatch):
  for name in list(os.environ):
    cache = "CACHE" in name  # the user's own is not for tests
    if name.startswith(("JAXPEFT_", "SLURM_", "OMPI_")) and not cache:
      monkeypatch.delenv(name)


@pytest.mark.usefixtures("_bare")
def test_limits_of_time_come_from_the_config(monkeypatch):
  told = {}
  monkeypatch.setattr(
    jax.distributed, "initialize", lambda *_, **kwargs: told.update(kwargs)
  )
  c = config.base()
  c.processes.update(dict(heartbeat_s=7, start_s=8, wait_s=9, end_s=10))
  flags = argparse.Namespace(coordinator="h:1", num_processes=2, process_id=0)
  cli.join(flags, c)
  assert told.pop("cluster_detection_method") == "deactivate"
  assert told == dict(
    heartbeat_timeout_seconds=7, initialization_timeout=8, shutdown_timeout_seconds=10
  )
  assert told.keys() < inspect.signature(_jax.State.initialize).parameters.keys()
  client = mock.Mock()
  client.blocking_key_value_get.return_value = "x"
  monkeypatch.setattr(_jax.global_state, "client", client)
  distributed.barrier("all")
  distributed.exchange("x")
  assert client.wait_at_barrier.call_args.args[1] == 9000
  assert client.blocking_key_value_get.call_args.args[1] == 9000


def test_where_a_run_is_may_change_and_old_runs_know_less(tmp_path):
  c, file = config.base(), tmp_path / "config.json"
  workdirs.prepare(tmp_path, c)
  c.mesh.fsdp, c.processes.heartbeat_s = 2, 7
  workdirs.prepare(tmp_path, c)
  older = json.loads(file.read_text())
  del older["processes"], older["mesh"]
  file.write_text(json.dumps(older))
  workdirs.prepare(tmp_path, c)
  assert workdirs.read_config(tmp_path).processes == config.base().processes
  c.seed = 1
  with pytest.raises(InputError, match="seed: 0 there, 1 now"):
    workdirs.prepare(tmp_path, c)


@pytest.mark.usefixtures("_bare")
@pytest.mark.parametrize(
  ("values", "message"),
  [
    (("h:1", None, None), "need num_processes and process_id too"),
    ((None, 2, None), "need coordinator and process_id too"),
    ((None, None, 0), "need coordinator and num_processes too"),
    ((None, 1, 1), "need coordinator too"),
    (("h", 2, 0), "'h' is not HOST:PORT"),
    (("h:1", 2, 2), "process_id 2 is not from 0 to num_processes - 1 = 1"),
    (("h:1", 2, -1), "process_id -1 is not"),
    (("h:1", 0, 0), "process_id 0 is not"),
    (("h:1", "two", 0), "num_processes = 'two' is no number"),
  ],
)
def test_values_that_do_not_fit_are_bad_input(values, message):
  with pytest.raises(InputError, match=message):
    distributed.initialize(*values, **config.base().processes)


@pytest.mark.usefixtures("_bare")
def test_arguments_win_over_the_environment(monkeypatch):
  assert cluster.given(None, None, None) is None
  monkeypatch.setenv("JAXPEFT_COORDINATOR", "h:1")
  monkeypatch.setenv("JAXPEFT_NUM_PROCESSES", "4")
  monkeypatch.setenv("JAXPEFT_PROCESS_ID", "3")
  assert cluster.given(None, None, None) == ("h:1", 4, 3)
  assert cluster.given("g:2", None, 0) == ("g:2", 4, 0)
  monkeypatch.setenv("JAXPEFT_PROCESS_ID", "")
  assert cluster.given(None, 1, None) == ("h:1", 1, 0)


@pytest.mark.usefixtures("_bare")
def test_clusters_are_detected(monkeypatch):
  assert cluster.detected() is None
  monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
  assert cluster.detected() is None, "a pod is no cluster"
  for name, value in (
    ("JOB_ID", 1),
    ("STEP_NODELIST", "node[3-4]"),
    ("NTASKS", 8),
    ("PROCID", 5),
    ("LOCALID", 1),
  ):
    assert cluster.detected() is None
    monkeypatch.setenv(f"SLURM_{name}", str(value))
  slurm = cluster.detected()
  assert slurm.get_process_count() == 8
  assert slurm.get_process_id() == 5
  assert slurm.get_coordinator_address(None, "9").endswith("node3:9")


def slurm(gpus, on_node, tasks, local, node=0):
  return dict(
    CUDA_VISIBLE_DEVICES=gpus,
    SLURM_GPUS_ON_NODE=str(on_node),
    SLURM_STEP_TASKS_PER_NODE=tasks,
    SLURM_LOCALID=str(local),
    SLURM_NODEID=str(node),
  )


@pytest.mark.parametrize(
  ("env", "want"),
  [
    # One process a machine: all of its GPUs, where JAX would take GPU 0 only.
    (slurm("0,1,2,3", 4, "1(x2)", 0), [0, 1, 2, 3]),
    (slurm("0,1,2,3", 4, "4(x2)", 3), [3]),
    (slurm("0,1,2,3", 4, "2(x2)", 1), [2, 3]),
    (slurm("0,1,2,3", 4, "1(x3),2", 1, node=3), [2, 3]),
    # --gpus-per-task: the others' are hidden, and indices count what is left.
    (slurm("2", 4, "4(x2)", 2), [0]),
    (slurm("0,1,2,3", 16, "4", 3), [0, 1, 2, 3]),
    (slurm("", 0, "4", 3), None),
    (slurm("0,1", 2, "2", 1) | dict(JAX_PLATFORMS="cpu"), None),
    (slurm("0,1", 2, "1", 0) | dict(JAX_LOCAL_DEVICE_IDS="1"), None),
    (
      dict(
        CUDA_VISIBLE_DEVICES="0,1",
        OMPI_COMM_WORLD_LOCAL_SIZE="1",
        OMPI_COMM_WORLD_LOCAL_RANK="0",
      ),
      [0, 1],
    ),
  ],
)
def test_every_gpu_belongs_to_one_process(env, want):
  assert cluster.gpus_of_process(env) == want


def test_gpus_that_cannot_be_shared_are_bad_input():
  with pytest.raises(InputError, match="3 processes cannot share 4 GPUs"):
    cluster.gpus_of_process(slurm("0,1,2,3", 4, "3", 0))
