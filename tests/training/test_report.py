"""What a run says about memory: planned and measured are not mixed up."""

import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from jaxpeft.training import compiled_bytes, report

LINE = dict(step=200, wall_s=92.0, peak_memory_bytes=171 << 20)


def test_the_last_line_says_what_was_planned_and_what_was_measured():
  process = dict(process_memory_bytes=812 << 20)
  shown = {
    "171 MiB measured on the device": dict(peak_memory_is="live", **process),
    "171 MiB planned for a step, 812 MiB measured for the process": dict(
      peak_memory_is="planned", **process
    ),
    "171 MiB planned for a step": dict(peak_memory_is="compiled"),  # an older version
  }
  for text, values in shown.items():
    assert report.result(LINE | values) == f"final: step 200, 92 s, peak memory {text}"


def test_a_cpu_has_the_plan_and_the_process_and_an_accelerator_its_own():
  class Device:
    def memory_stats(self):
      return dict(peak_bytes_in_use=123)

  step = jax.jit(lambda x: x @ x).lower(jnp.zeros((64, 64))).compile()
  found = report.peak_memory(step, jax.local_devices()[0])
  assert found["peak_memory_is"] == "planned"
  assert found["peak_memory_bytes"] == compiled_bytes.planned(step) >= 2 * 4 * 64 * 64
  found = report.peak_memory(step, Device())
  assert (found["peak_memory_is"], found["peak_memory_bytes"]) == ("live", 123)


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="no /proc")
def test_the_peak_of_the_process_is_in_bytes():
  status = pathlib.Path("/proc/self/status").read_text()
  kib = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
  assert compiled_bytes.process_peak() == pytest.approx(1024 * kib, rel=0.01)
