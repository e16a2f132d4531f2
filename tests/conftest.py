"""Shared by all tests: a private cache, 8 CPU devices, data where it is at hand."""

import os
import pathlib

import jax
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
jax.config.update("jax_num_cpu_devices", 8)
# Most time of the tests is LLVM's. What programs have in them is HLO's, and unchanged.
jax.config.update("jax_disable_most_optimizations", True)

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory):
  os.environ["JAXPEFT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def data_dir():
  """Real data, from JAXPEFT_DATA or ../shared/data."""
  path = pathlib.Path(os.environ.get("JAXPEFT_DATA", ROOT.parent / "shared" / "data"))
  if not path.is_dir():
    pytest.skip(f"no data at {path}; set JAXPEFT_DATA")
  return path
