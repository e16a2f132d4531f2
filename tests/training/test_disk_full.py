"""A full disk is one line, loses nothing, and the run goes on with room again."""

import asyncio
import gc
import json
import subprocess
import sys

import chex
import pytest
import safetensors

from jaxpeft.errors import shortage
from tests.training.test_training import finished, theta, train

__all__ = ["finished"]


@pytest.mark.parametrize(
  ("error", "part"),
  [
    (OSError(28, "No space left on device", "runs/x"), "disk is full.* at runs/x"),
    (OSError(122, "Disk quota exceeded"), "disk is full"),
    (
      ValueError('RESOURCE_EXHAUSTED: Error writing "a": No space left'),
      "disk is full",
    ),
    (safetensors.SafetensorError("IoError (os error 28)"), "disk is full"),
    (MemoryError(), "out of memory. Lower train.batch_size"),
    (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9"), "out of memory"),
    (OSError(2, "No such file"), None),
    (KeyError("x"), None),
  ],
)
def test_a_shortage_is_known_however_it_is_wrapped(error, part):
  import re

  for wrapped in (error, _wrapped(error)):
    line = shortage(wrapped)
    assert (line is None) == (part is None)
    assert line is None or (re.search(part, line) and "\n" not in line)


def _wrapped(error):
  try:
    try:
      raise error
    except Exception as e:
      raise RuntimeError("saving failed") from e
  except RuntimeError as e:
    return e


def test_the_other_writes_of_a_save_log_nothing_but_other_errors_do(caplog):
  async def fails(error):
    raise error

  async def main():
    tasks = [
      asyncio.create_task(fails(error))
      for error in (ValueError("RESOURCE_EXHAUSTED: No space left"), KeyError("x"))
    ]
    await asyncio.wait(tasks)

  asyncio.run(main())  # nobody asks for the errors of its tasks
  gc.collect()
  assert [r.exc_info[0] for r in caplog.records if r.name == "asyncio"] == [KeyError]


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [300, 700, 1500])
def test_a_full_disk_is_one_line_and_the_run_goes_on(kilobytes, finished, tmp_path):
  small = tmp_path / "small"
  small.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(small)]
  if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
    pytest.skip("mounting a small file system is not permitted")
  try:
    got = train(small / "run", status=2)
    lines = [line for line in got.stderr.splitlines() if line.strip()]
    assert "Traceback" not in got.stderr
    assert lines[-1].startswith("error: the disk is full"), lines[-3:]
    more = ["mount", "-o", "remount,size=50m", str(small)]
    subprocess.run(more, check=True)
    train(small / "run")
    chex.assert_trees_all_equal(theta(small / "run"), theta(finished))
    last = (small / "run/metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["final"]
  finally:
    subprocess.run(["umount", "-l", str(small)], check=False)
