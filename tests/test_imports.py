"""Who may import whom, and what the core must not import."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "jaxpeft").rglob("*.py"))
KERNELS = sorted((ROOT / "kernels").rglob("*.py"))

# module -> what of jaxpeft it may import; modules not named here may import anything.
ALLOWED = {
  "errors": set(),
  "hugepages": set(),
  "sharding": {"errors", "linear"},
  "chunks": set(),
  "losses": {"chunks", "sharding"},
  "attention": {"chunks", "sharding"},
  "gangs": {"errors"},
  "distributed": {"errors", "gangs"},
  "launch": {"errors", "gangs"},
  "linear": set(),
  "nf4": {"dynamic_map", "errors", "linear", "nf4_products"},
  "nf4_products": {"sharding"},
  "partitions": set(),
  "config": set(),
  "svd": {"sharding"},
  "optim": {"errors", "precondition"},
  "precondition": {"errors"},
  "model_config": set(),
  "rope": {"model_config"},
  "layers": {
    "attention",
    "chunks",
    "linear",
    "model_config",
    "partitions",
    "rope",
    "sharding",
  },
  "transformer": {
    "attention",
    "layers",
    "linear",
    "model_config",
    "rope",
    "sharding",
  },
  "sample": {"attention", "errors", "sharding", "transformer"},
  "adapters": {"adapters", "errors", "linear", "nf4", "partitions", "sharding", "svd"},
  "data": {"assets", "data", "errors"},
  "tasks": {"data", "errors", "tasks"},
  "tokens": {"errors"},
  "training": {
    "attention",
    "errors",
    "losses",
    "partitions",
    "sharding",
    "tokens",
    "transformer",
  },
}


def imports(path):
  """Dotted names that a file imports."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_one_way(path):
  module = path.relative_to(ROOT / "jaxpeft").with_suffix("").parts[0]
  if module not in ALLOWED:
    return
  for name in imports(path):
    if name.startswith("jaxpeft."):
      assert name.split(".")[1] in ALLOWED[module], f"{path} imports {name}"


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
