"""The notebooks run from top to bottom, and are stored with what they show."""

import copy
import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SHORT = "quickstart"  # the others take longer, and run with -m slow


@pytest.fixture(scope="module")
def tool():
  """tools/run_notebooks.py, as a module."""
  pytest.importorskip("nbformat")
  path = ROOT / "tools" / "run_notebooks.py"
  spec = importlib.util.spec_from_file_location("run_notebooks", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize(
  "path",
  [
    pytest.param(p, id=p.stem, marks=[] if p.stem == SHORT else [pytest.mark.slow])
    for p in PATHS
  ],
)
def test_notebook_runs(path, tool):
  pytest.importorskip("nbclient")
  tool.run(tool.read(path))


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_stored_notebooks_show_what_they_should(path, tool):
  assert tool.problems(path) == []


def test_the_first_notebook_meets_every_method_of_its_list(tool):
  text = (ROOT / "notebooks" / "what_is_trained.ipynb").read_text()
  for name in "LoRA DoRA NoRA VeRA PiSSA MiLoRA LoRAXS SVF SVFT IA3 Full".split():
    assert f"jaxpeft.{name}(" in text, name


def damage(notebook, what):
  """A notebook with one fault."""
  notebook = copy.deepcopy(notebook)
  code = [c for c in notebook.cells if c.cell_type == "code"]
  pictures = [x for c in code for x in c.outputs if "image/png" in x.get("data", {})]
  if what == "link":
    notebook.cells[0].source = "[![Open](x)](https://elsewhere)"
  elif what == "order":
    code[2].execution_count = 99
  elif what == "not run":
    code[2].execution_count, code[2].outputs = None, []
  elif what == "picture":
    for x in pictures:
      del x.data["image/png"]
  elif what == "size":
    pictures[0].data["image/png"] *= 100
  elif what == "path":
    code[2].outputs[0].text = "saved in /home/someone/runs/x\n"
  elif what == "warning":
    code[2].outputs[0].name = "stderr"
  else:
    error = dict(output_type="error", ename="ValueError", evalue="", traceback=[])
    code[2].outputs.append(type(code[2].outputs[0])(error))
  return notebook


@pytest.mark.parametrize(
  ("what", "says"),
  [
    ("link", "first cells are old"),
    ("order", "not run from top to bottom"),
    ("not run", "not run from top to bottom"),
    ("picture", "no picture"),
    ("size", "bytes, more than"),
    ("path", "path of a machine"),
    ("warning", "error or a warning"),
    ("error", "error or a warning"),
  ],
)
def test_a_fault_of_a_stored_notebook_is_found(what, says, tool, tmp_path):
  import nbformat

  path = tmp_path / f"{SHORT}.ipynb"
  nbformat.write(damage(tool.read(ROOT / "notebooks" / path.name), what), path)
  assert any(says in problem for problem in tool.problems(path))


def test_what_is_stored_is_without_warnings_paths_and_times(tool):
  import nbformat

  new = nbformat.v4
  text = f"{ROOT}/docs/x.md and {pathlib.Path.home()}/x <a object at 0x7f0123456789>"
  cell = new.new_code_cell(
    "1",
    metadata=dict(execution={"iopub.status.busy": "2026-01-01"}),
    outputs=[
      new.new_output("stream", name="stderr", text="a warning"),
      new.new_output("stream", name="stdout", text=text),
      new.new_output("execute_result", data={"text/plain": text}),
    ],
  )
  before = new.new_notebook(cells=[cell], metadata=dict(widgets={}))
  after = tool.cleaned(before)
  printed, result = after.cells[0].outputs
  assert printed.text == result.data["text/plain"]
  assert str(ROOT) not in printed.text
  assert printed.text.startswith("docs/x.md and ")
  assert "0x7f" not in printed.text
  assert not after.cells[0].metadata
  assert set(after.metadata) == {"kernelspec", "language_info"}
  assert len(before.cells[0].outputs) == 3  # the argument is left as it is
