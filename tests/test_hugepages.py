"""A command that asks for huge pages: started again once, and only if that helps."""

import os
import subprocess
import sys

import pytest

from jaxpeft import hugepages

SCRIPT = """
import os, pathlib, sys
from jaxpeft import hugepages
hugepages._ENABLED = pathlib.Path(sys.argv[1])
{before}
hugepages.ask()
print(os.getpid(), sys.argv[2:], sys.flags.optimize, os.environ.get(hugepages.KEY))
"""


def start(tmp_path, enabled="always [madvise] never", variable=None, before=""):
  """(process id, what the script printed) of a script that asks."""
  (tmp_path / "enabled").write_text(enabled)
  (tmp_path / "script.py").write_text(SCRIPT.format(before=before))
  env = {k: v for k, v in os.environ.items() if k != hugepages.KEY}
  env |= {} if variable is None else {hugepages.KEY: variable}
  command = [sys.executable, "-O", tmp_path / "script.py", tmp_path / "enabled", "a b"]
  process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
  out = process.communicate(timeout=60)[0]
  assert process.returncode == 0
  return process.pid, out.splitlines()


@pytest.mark.skipif(not hugepages.modern_glibc(), reason="not glibc since 2.35")
def test_a_command_starts_again_as_the_same_process_with_the_same_arguments(tmp_path):
  pid, lines = start(tmp_path)
  assert lines == [f"{pid} ['a b'] 1 {hugepages.ASK}"]


@pytest.mark.parametrize(
  "how",
  [
    dict(enabled="[always] madvise never"),
    dict(enabled="always madvise [never]"),
    dict(before="hugepages._ENABLED = hugepages._ENABLED / 'missing'"),
    dict(before="os.confstr = lambda name: 'musl'"),
    dict(before="os.confstr = lambda name: 'glibc 2.34'"),
    dict(before="sys.settrace(lambda *_: None)"),
    dict(before="sys.executable = sys.executable + '-missing'"),
  ],
)
def test_a_command_goes_on_where_that_does_not_help(tmp_path, how):
  pid, lines = start(tmp_path, **how)
  assert lines == [f"{pid} ['a b'] 1 None"]


HOSTS = {
  "runpy": ["host.py"],
  "runpy with the same arguments": ["host.py", "SCRIPT", "SYS"],
  "-m": ["-m", "host", "SCRIPT", "SYS"],
  "standard input": ["-", "SYS"],
  "-c": ["-c", "import host", "SCRIPT", "SYS"],
}


@pytest.mark.parametrize("how", HOSTS)
def test_a_process_of_something_else_is_not_started_again(tmp_path, how):
  """A kernel of a notebook would lose its variables, and the script would not run."""
  script, enabled = tmp_path / "script.py", tmp_path / "enabled"
  enabled.write_text("always [madvise] never")
  script.write_text(SCRIPT.format(before=""))
  host = f"""
import runpy, sys
print("host")
sys.argv = [{str(script)!r}, {str(enabled)!r}]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
  (tmp_path / "host.py").write_text(host)
  names = dict(SCRIPT=str(script), SYS=str(enabled))
  env = {k: v for k, v in os.environ.items() if k != hugepages.KEY}
  out = subprocess.run(
    [sys.executable, *(names.get(x, x) for x in HOSTS[how])],
    input=script.read_text(),
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env=env | dict(PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path])),
  )
  assert out.returncode == 0, out.stderr
  lines = out.stdout.splitlines()
  assert lines[-1].endswith(" [] 0 None"), lines
  assert lines[:-1] == ["host"] * (how != "standard input")


def test_a_variable_that_is_set_is_left_as_it_is(tmp_path):
  pid, lines = start(tmp_path, variable="")
  assert lines == [f"{pid} ['a b'] 1 "]


def test_in_huge_pages_memory_takes_few_faults():
  """What it is for: glibc's memory, asked for in one piece and written once."""
  if not hugepages._help():
    pytest.skip("this system gives no huge pages to who asks")
  code = """
import resource
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
b"1" * 2**27
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
  faults = []
  for asked in ({}, {hugepages.KEY: hugepages.ASK}):
    env = {k: v for k, v in os.environ.items() if k != hugepages.KEY} | asked
    command = [sys.executable, "-c", f"size = 2**27{code.replace('2**27', 'size')}"]
    out = subprocess.run(command, env=env, check=True, capture_output=True)
    faults.append(int(out.stdout))
  assert faults[1] < faults[0] / 10, faults
