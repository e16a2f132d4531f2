"""The templates of launch/, with the cluster's programs replaced by small fakes."""

import os
import pathlib
import subprocess

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]


def run(tmp_path, script, *args, fakes, **env):
  """The finished script, with `fakes` (name -> shell text) before all else in PATH."""
  bin_ = tmp_path / "bin"
  bin_.mkdir()
  for name, text in fakes.items():
    (bin_ / name).write_text(f"#!/bin/bash\n{text}\n")
    (bin_ / name).chmod(0o755)
  return subprocess.run(
    ["bash", ROOT / "launch" / script, *args],
    cwd=tmp_path,
    env=os.environ | dict(PATH=f"{bin_}:{os.environ['PATH']}") | env,
    capture_output=True,
    text=True,
    timeout=300,
  )


@pytest.mark.parametrize(
  ("status", "before", "requeued"),
  [(0, 0, False), (2, 0, False), (143, 0, True), (17, 9, True), (17, 10, False)],
)
def test_a_slurm_job_requeues_itself_where_that_helps(
  status, before, requeued, tmp_path
):
  done = run(
    tmp_path,
    "slurm.sbatch",
    "--config=c.py",
    "--config.x=a b",
    fakes=dict(
      srun=f'printf "%s\\n" "$@" > srun.txt; exit {status}',
      scontrol='echo "$@" > scontrol.txt',
    ),
    SLURM_JOB_ID="7",
    SLURM_RESTART_COUNT=str(before),
  )
  assert done.returncode == status
  assert (tmp_path / "scontrol.txt").exists() == requeued
  if requeued:
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 7\n"
  called = (tmp_path / "srun.txt").read_text().splitlines()
  assert called[0] == "--kill-on-bad-exit=1"
  assert called[-4:] == ["python", "train.py", "--config=c.py", "--config.x=a b"]


@pytest.mark.parametrize(
  ("ends", "status", "tries"),
  [("0", 0, 1), ("17 134 0", 0, 3), ("2 0", 2, 1), ("17 143 0", 143, 2)],
)
def test_a_tpu_run_is_tried_again_where_that_helps(ends, status, tries, tmp_path):
  (tmp_path / "jaxpeft").mkdir()
  done = run(
    tmp_path,
    "tpu_vm.sh",
    "--config.x=a b",
    fakes=dict(
      # As gcloud does, but on one worker: its home is here.
      gcloud='for x in "$@"; do [[ $x == --command=* ]] && c=${x#--command=}; done\n'
      'echo "Connecting to worker 0"; bash -c "$c"; exit 1',
      python='echo "$@" >> calls.txt\n'
      f'set -- {ends}; exit "${{@:$(wc -l < calls.txt):1}}"',
    ),
    TPU="slice",
    ZONE="zone",
  )
  assert done.returncode == status, done.stderr
  calls = (tmp_path / "jaxpeft" / "calls.txt").read_text().splitlines()
  assert calls == ["train.py --config.x=a b"] * tries


def test_pods_are_told_what_distributed_reads():
  job = yaml.safe_load((ROOT / "launch" / "jobset.yaml").read_text())
  [workers] = job["spec"]["replicatedJobs"]
  spec = workers["template"]["spec"]
  container = spec["template"]["spec"]["containers"][0]
  env = {item["name"]: item.get("value") for item in container["env"]}
  name = job["metadata"]["name"]
  host = f"{name}-{workers['name']}-0-0.{name}"
  assert env["JAXPEFT_COORDINATOR"].split(":")[0] == host
  assert env["JAXPEFT_NUM_PROCESSES"] == str(spec["parallelism"])
  assert env.keys() - {"JAXPEFT_COORDINATOR", "JAXPEFT_NUM_PROCESSES"} == {
    "JAXPEFT_PROCESS_ID"
  }
  assert spec["completions"] == spec["parallelism"]
  [rule] = spec["podFailurePolicy"]["rules"]
  assert rule["onExitCodes"]["containerName"] == container["name"]
