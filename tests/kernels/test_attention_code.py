"""The attention kernels' code for GPUs that need not be there: spills and memory."""

import pytest

from tests.support import aot
from tests.support.commands import run


@pytest.mark.slow
def test_forward_spills_nothing_on_an_h100(tmp_path):
  """All head_dims, with and without a soft cap."""
  env = aot.environment("triton") | dict(TRITON_CACHE_DIR=str(tmp_path))
  out = run(env, "tests/support/attention_code.py", "90", "forward")
  assert "10 kernels fit" in out
