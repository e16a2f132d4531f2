"""The launcher starts, restarts and ends a group of processes, leaving none behind."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LIMIT_S = 400
SUM = "sum 139248.0"  # of processes.py, however often it was disturbed


def start(*args):
  """python -m jaxpeft launch, in the background."""
  return subprocess.Popen(
    [sys.executable, "-m", "jaxpeft", "launch", *map(str, args)],
    cwd=ROOT,
    env={k: v for k, v in os.environ.items() if not k.startswith("JAXPEFT_")}
    | dict(PYTHONPATH=str(ROOT)),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def launch(*args):
  """(status, stdout, stderr) of python -m jaxpeft launch."""
  process = start(*args)
  try:
    out, err = process.communicate(timeout=LIMIT_S)
  finally:
    process.kill()
  return process.returncode, out, err


def group(processes=2, **options):
  args = ("--max-restarts", 1, "--devices-per-process", 2, "--", sys.executable)
  return launch(
    "-n", processes, *args, "tests/support/processes.py", json.dumps(options)
  )


def test_a_killed_group_resumes_from_its_checkpoint_and_ends_the_same(tmp_path):
  """Both processes skip a checkpoint that one of them cannot read."""
  directory = tmp_path / "c"
  mishap = dict(what="SIGKILL", process=1, step=7, unreadable=1)
  status, out, err = group(directory=str(directory), **mishap)
  assert status == 0, err
  assert "process 1 ended by signal 9" in err
  assert err.count("restart 1 of 1") == 1
  reported = [line for line in err.splitlines() if "is damaged" in line]
  assert len(reported) == 1
  assert "a disk of this machine is broken" in reported[0]
  resumed = [line for line in out.splitlines() if "resumed at step" in line]
  assert len({line.removeprefix("[1] ") for line in resumed}) == 1
  assert len(resumed) == 2
  assert out.count(SUM) == 2

  # One process with fewer devices goes on with what two of them saved.
  for path in (directory / "10" / "state").rglob("d/*"):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  status, out, err = group(1, directory=str(directory))
  assert status == 0, err
  assert "step 10 is damaged" in err
  assert "resumed at step 8" in out
  assert out.count(SUM) == 1


def test_an_exception_in_one_process_ends_all_at_once():
  """Python's own exit would wait 3600 s for the other: past the limit."""
  limits = dict(end_s=3600, heartbeat_s=3600)
  options = json.dumps(dict(what="raise", process=1, step=4, processes=limits))
  args = ("-n", 2, "--devices-per-process", 1, "--", sys.executable)
  status, out, err = launch(*args, "tests/support/processes.py", options)
  assert status == 17
  assert "process 1 ended with status 17" in err
  assert err.count("[1] RuntimeError: one process alone has this") == 1
  assert "sum" not in out


def test_a_signal_to_the_launcher_saves_in_all_processes(tmp_path):
  directory = tmp_path / "c"
  options = json.dumps(dict(directory=str(directory), steps=10_000, pause=0.2))
  process = start(
    *("-n", 2, "--max-restarts", 3, "--devices-per-process", 1, "--"),
    *(sys.executable, "tests/support/processes.py", options),
  )
  wait(lambda: (directory / "2").exists() or process.poll() is not None)
  process.send_signal(signal.SIGINT)
  out, err = process.communicate(timeout=LIMIT_S)
  assert process.returncode == 128 + signal.SIGTERM, err
  assert "restart" not in err
  left = {line.removeprefix("[1] ") for line in out.splitlines() if "left" in line}
  assert len(left) == 1
  assert out.count("left at step") == 2
  assert (directory / left.pop().split()[-1]).exists()


def shell(text, *args):
  """`launch` of a shell's text, in which wait_for FILE waits until a file is there."""
  wait_for = "wait_for() { while [ ! -e $1 ]; do sleep 0.05; done; }; "
  return launch(*args, "--", "sh", "-c", wait_for + text)


def test_output_is_told_apart_and_the_status_is_0():
  text = "echo $JAXPEFT_PROCESS_ID/$JAXPEFT_NUM_PROCESSES; echo oh >&2"
  status, out, err = shell(text, "-n", 3)
  assert status == 0
  assert sorted(out.splitlines()) == ["0/3", "[1] 1/3", "[2] 2/3"]
  assert sorted(err.splitlines()) == ["[1] oh", "[2] oh", "oh"]


def test_gpus_are_shared(monkeypatch):
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
  status, out, _ = shell("echo $JAX_LOCAL_DEVICE_IDS", "-n", 2)
  assert status == 0
  assert sorted(out.splitlines()) == ["0,1", "[1] 2,3"]
  status, _, err = shell("echo", "-n", 3)
  assert status == 2
  assert "3 processes cannot share 4 GPUs" in err


def test_bad_input_is_not_tried_again(tmp_path):
  mark = tmp_path / "mark"
  text = (
    f"echo try; [ $JAXPEFT_PROCESS_ID = 0 ] || {{ wait_for {mark}; exit 2; }}; "
    f"touch {mark}; sleep 600"
  )
  status, out, _ = shell(text, "-n", 2, "--max-restarts", 5)
  assert status == 2
  assert out.count("try") == 2


def test_restarts_are_counted_and_the_crash_is_the_status():
  text = "echo restart $JAXPEFT_RESTART; exit 17"
  status, out, err = shell(text, "--max-restarts", 2)
  assert status == 17
  assert out.split() == ["restart", "0", "restart", "1", "restart", "2"]
  assert "process 0 ended with status 17" in err


def test_a_saved_and_stopped_group_is_not_restarted():
  status, out, _ = shell("echo try; exit 143", "-n", 2, "--max-restarts", 5)
  assert status == 143
  assert out.count("try") == 2


@pytest.mark.parametrize(
  ("args", "message"),
  [
    (("-n", 0, "--", "true"), "-n 0 is less than 1"),
    (("--max-restarts", -1, "--", "true"), "--max-restarts -1 is less than 0"),
    (("--devices-per-process", 0, "--", "true"), "0 is less than 1"),
    (("-n", 2), "launch what"),
    (("-n", 2, "--", "not-there"), "cannot start not-there: No such file"),
  ],
)
def test_bad_input_is_one_line(args, message):
  status, _, err = launch(*args)
  assert status == 2
  assert message in err
  assert len(err.splitlines()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="Linux kills the orphans")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_its_launcher(number, tmp_path):
  code = f"""
import os, pathlib, time
mark = pathlib.Path({str(tmp_path)!r}, os.environ["JAXPEFT_PROCESS_ID"])
mark.with_suffix(".tmp").write_text(str(os.getpid()))
mark.with_suffix(".tmp").rename(mark)
time.sleep(600)
"""
  process = start("-n", 2, "--", sys.executable, "-c", code)
  marks = [tmp_path / "0", tmp_path / "1"]
  wait(lambda: all(m.exists() for m in marks))
  process.send_signal(number)
  process.communicate(timeout=LIMIT_S)
  assert process.returncode == (-9 if number == signal.SIGKILL else 143)
  wait(lambda: not any(alive(int(m.read_text())) for m in marks))


def wait(condition):
  clock = time.monotonic()
  while not condition():
    assert time.monotonic() - clock < LIMIT_S
    time.sleep(0.05)


def alive(pid):
  try:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
  except OSError:
    return False
