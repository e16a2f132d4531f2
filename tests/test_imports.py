"""Who may import whom, and what the core must not import."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "jaxpeft").rglob("*.py"))
KERNELS = sorted((ROOT / "kernels").rglob("*.py"))

# Rooms (packages, or single modules), ground floor first. A room imports itself and
# what stands below it.
FLOORS = [
  {"errors", "linear", "config", "assets", "plotting", "temporary"},
  {"optional", "tree", "caches"},
  {"parallel"},
  {"console", "data"},
  {"preference", "quantization", "scaling"},
  {"transformer"},
  {"adapters", "generation"},
  {"objectives"},
  {"training"},
  {"checkpoints"},
  {"model"},
  {"evaluation"},
  {"open_keys"},
  {"config_file", "options", "run_data"},
  {"experiment"},
  {"export", "planning", "sweeps"},
  {"chat", "harness", "hub"},
  {"commands"},
  {"cli"},
  {"__main__"},
]
ALLOWED = {
  room: {room}.union(*FLOORS[:i]) for i, floor in enumerate(FLOORS) for room in floor
}


def imports(path):
  """Dotted names that a file imports."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_what_stands_below_it(path):
  room = path.relative_to(ROOT / "jaxpeft").with_suffix("").parts[0]
  if room == "__init__":  # names for notebooks, of all rooms
    return
  for name in imports(path):
    if name.startswith("jaxpeft."):
      assert name.split(".")[1] in ALLOWED[room], f"{path} imports {name}"


def test_one_place_assembles_a_run():
  """Partition, optimizer state and step meet in experiment.py and nowhere else."""
  sources = [p for p in FILES if p.name not in ("experiment.py", "step.py")]
  sources += [ROOT / "train.py", ROOT / "eval.py", *ROOT.glob("benchmarks/*.py")]
  sources += [*ROOT.glob("tools/*.py"), *ROOT.glob("notebooks/*.ipynb")]
  for path in sources:
    text = path.read_text()
    for name in ("init_state(", "step.make_step(", "training.make_step(", "score="):
      assert name not in text, f"{path} has {name}"


def test_every_room_says_what_is_in_it():
  for path in ROOT.glob("jaxpeft/*/__init__.py"):
    assert ast.get_docstring(ast.parse(path.read_text())), path


def test_type_checkers_see_the_names_that_notebooks_use():
  import jaxpeft

  names = {n.rpartition(".")[2] for n in imports(ROOT / "jaxpeft" / "__init__.py")}
  assert names - {"importlib", "TYPE_CHECKING"} == set(jaxpeft.__all__)
  assert all(hasattr(jaxpeft, name) for name in jaxpeft.__all__)


@pytest.mark.parametrize(
  "path", FILES + KERNELS, ids=lambda p: str(p.relative_to(ROOT))
)
def test_no_nnx_and_no_file_with_two_ideas(path):
  assert not any("nnx" in name for name in imports(path))
  assert len(path.read_text().splitlines()) <= 300


def test_kernels_is_no_package_and_what_is_in_it_knows_no_jaxpeft():
  assert not (ROOT / "kernels" / "__init__.py").exists()
  may = {"jax", "jaxpeft_kernels", "numpy", "triton"} | sys.stdlib_module_names
  package = ROOT / "kernels" / "jaxpeft_kernels"
  names = {n.split(".")[0] for p in package.rglob("*.py") for n in imports(p)}
  assert names <= may, names - may


def test_the_core_imports_no_torch_and_starts_no_backend():
  code = (
    "import sys, jaxpeft, jax; "
    "bad = {'torch', 'transformers', 'tensorflow', 'datasets'} & sys.modules.keys(); "
    "assert not bad, bad; "
    "from jax._src import xla_bridge; assert not xla_bridge._backends"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
