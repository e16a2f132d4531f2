"""Shared by all tests: a private cache, 8 CPU devices, data where it is at hand."""

import contextlib
import gc
import os
import pathlib

import hypothesis
import jax
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["JAXPEFT_COMPILED_CACHE_GB"] = "0"  # tests count what is compiled
jax.config.update("jax_num_cpu_devices", 8)
# LLVM dominates the time of tests; skipping its optimizations leaves the HLO unchanged.
jax.config.update("jax_disable_most_optimizations", True)


def _compile_sooner():
  """Has XLA emit its loops as it did before 2025, which takes half of the time.

  XLA reads its flags with its first program. Processes that tests start do not have it,
  so commands run as users run them. A jaxlib that does not know a flag ends the
  process, hence the bound.
  """
  if "XLA_FLAGS" not in os.environ and jax.__version_info__ < (0, 13):
    os.environ["XLA_FLAGS"] = "--xla_cpu_use_fusion_emitters=false"
    jax.jit(lambda: 0)()
    del os.environ["XLA_FLAGS"]


_compile_sooner()
# On a busy machine an example may take long to draw, or to check.
hypothesis.settings.register_profile(
  "busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("busy")

ROOT = pathlib.Path(__file__).parents[1]
_MAPS = 20_000


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
  """Marks the fast tier: tests that are not slow, and not listed in medium.txt."""
  medium = set((ROOT / "tests" / "medium.txt").read_text().split())
  for item in items:
    place = item.path.relative_to(ROOT / "tests").as_posix()
    name = f"{place}::{getattr(item, 'originalname', item.name)}"
    slow = any(map(item.get_closest_marker, ("slow", "gpu", "exhaustive")))
    if not slow and name not in medium:
      item.add_marker("fast")


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory):
  os.environ["JAXPEFT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def _meshes():
  """Ends a mesh that a command has put in force, before the next test."""
  from jaxpeft import experiment

  with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as meshes:

    def enter(mesh):
      if mesh is not None:
        meshes.enter_context(jax.set_mesh(mesh))

    patch.setattr(experiment, "enter_mesh", enter)
    yield


_of_a_file = pytest.fixture(autouse=True, scope="module")(_meshes)  # of its fixtures
_of_a_test = pytest.fixture(autouse=True)(_meshes)


@pytest.fixture(autouse=True, scope="module")
def _few_programs():
  """Drops compiled programs once there are many.

  Each takes a few memory maps, of which Linux gives a process 65,530. XLA crashes when
  there are no more.
  """
  yield
  maps = pathlib.Path("/proc/self/maps")
  if maps.exists() and maps.read_bytes().count(b"\n") > _MAPS:
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def data_dir():
  """Real data, from JAXPEFT_DATA or ../shared/data."""
  path = pathlib.Path(os.environ.get("JAXPEFT_DATA", ROOT.parent / "shared" / "data"))
  if not path.is_dir():
    pytest.skip(f"no data at {path}; set JAXPEFT_DATA")
  return path
