"""Runs the notebooks and stores them with their outputs, pictures included.

  python tools/run_notebooks.py [NAME ...]     e.g. quickstart; by default all
  python tools/run_notebooks.py --links        writes the first cells only

The first two cells of a notebook are written by this tool: a link that opens it on
Colab, and the installation that it needs there. Warnings, paths of this machine and
times of execution are left out of what is stored. For memory.ipynb, set $JAXPEFT_AOT to
a directory with the wheels that compile for an H100 (docs/quantization.md).
"""

import argparse
import copy
import os
import pathlib
import re
import time

import nbformat

# Where the project is published: OWNER/NAME on GitHub. OWNER is a placeholder until the
# address is known, and the links lead nowhere until then. See CONTRIBUTING.md.
REPOSITORY = "OWNER/jaxpeft"
ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
LIMIT = 300_000  # bytes of a stored notebook
SECONDS = 900  # of one cell

_COLAB = "https://colab.research.google.com"
_LINK = (
  "[![Open in Colab]({colab}/assets/colab-badge.svg)]"
  "({colab}/github/{repository}/blob/main/notebooks/{name}.ipynb)"
)
_INSTALL = """\
# On Colab, this installs jaxpeft. Elsewhere it does nothing.
import importlib.util

if importlib.util.find_spec("jaxpeft") is None:
  %pip install --quiet "jaxpeft @ git+https://github.com/{repository}"
"""


def paths() -> list[pathlib.Path]:
  """All notebooks."""
  return sorted(FOLDER.glob("*.ipynb"))


def read(path: pathlib.Path):
  """A notebook."""
  return nbformat.read(path, as_version=4)


def first_cells(name: str) -> dict[str, str]:
  """{id of a cell: its text}, of the cells that this tool writes."""
  link = _LINK.format(colab=_COLAB, repository=REPOSITORY, name=name)
  return dict(link=link, install=_INSTALL.format(repository=REPOSITORY).rstrip())


def with_first_cells(notebook, name: str):
  """The notebook with the cells that this tool writes at its top."""
  link, install = first_cells(name).values()
  new = nbformat.v4
  cells = [c for c in notebook.cells if c.id not in ("link", "install")]
  top = [new.new_markdown_cell(link, id="link")]
  top.append(new.new_code_cell(install, id="install", metadata=dict(tags=["install"])))
  notebook = copy.deepcopy(notebook)
  notebook.cells = top + cells
  return notebook


def run(notebook):
  """The notebook, executed in the project's root.

  Raises:
    nbclient.exceptions.CellExecutionError: a cell failed.
  """
  import nbclient

  notebook = copy.deepcopy(notebook)
  where = {"metadata": {"path": str(ROOT)}}
  nbclient.NotebookClient(
    notebook,
    timeout=SECONDS,
    startup_timeout=SECONDS,
    kernel_name="python3",
    resources=where,
  ).execute()
  return notebook


def cleaned(notebook):
  """The notebook without warnings, paths and times of the machine that ran it."""
  notebook = copy.deepcopy(notebook)
  notebook.metadata = nbformat.from_dict(
    dict(
      kernelspec=dict(display_name="Python 3", language="python", name="python3"),
      language_info=dict(name="python"),
    )
  )
  for cell in notebook.cells:
    cell.metadata.pop("execution", None)
    if cell.cell_type != "code":
      continue
    cell.outputs = [x for x in cell.outputs if x.get("name") != "stderr"]
    for output in cell.outputs:
      output.pop("transient", None)
      if "text" in output:
        output["text"] = _without_paths(output["text"])
      for kind, value in output.get("data", {}).items():
        if kind.startswith("text/"):
          output["data"][kind] = _without_paths(value)
  return notebook


def _without_paths(text: str) -> str:
  text = text.replace(f"{ROOT}/", "").replace(str(ROOT), ".")
  text = (
    text.replace(str(pathlib.Path.home()), "~")
    if len(str(pathlib.Path.home())) > 1
    else text
  )
  return re.sub(r" at 0x[0-9a-f]{6,}", "", text)


def problems(path: pathlib.Path) -> list[str]:
  """What is wrong with a stored notebook, in words; reads it without running it."""
  notebook, found = read(path), []
  own = {c.id: c.source for c in notebook.cells[:2]}
  if own != first_cells(path.stem):
    found.append("its first cells are old: python tools/run_notebooks.py --links")
  size = path.stat().st_size
  if size > LIMIT:
    found.append(f"it has {size:,} bytes, more than {LIMIT:,}")
  code = [c for c in notebook.cells if c.cell_type == "code"]
  counts = [c.execution_count for c in code]
  if counts != list(range(1, len(code) + 1)):
    found.append("it was not run from top to bottom")
  outputs = [(c.id, x) for c in code for x in c.outputs]
  for cell, output in outputs:
    if output.output_type == "error" or output.get("name") == "stderr":
      found.append(f"cell {cell} has an error or a warning")
    data = output.get("data", {})
    text = "".join(
      [output.get("text", ""), *(v for k, v in data.items() if "text/" in k)]
    )
    if re.search(r"(?<![\w.:/])/(home|root|tmp|work|usr|Users|content|opt|var)/", text):
      found.append(f"cell {cell} shows a path of a machine")
  if not any("image/png" in x.get("data", {}) for _, x in outputs):
    found.append("it has no picture")
  return found


def main():
  """Runs and stores notebooks."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("names", nargs="*", help="notebooks without .ipynb; default all")
  parser.add_argument("--links", action="store_true", help="write the first cells only")
  args = parser.parse_args()
  if os.environ.get("JAXPEFT_AOT"):
    places = [os.environ["JAXPEFT_AOT"], os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, places))
  known = {path.stem: path for path in paths()}
  unknown = set(args.names) - set(known)
  if unknown:
    parser.error(f"no notebook {', '.join(unknown)}; there are {', '.join(known)}")
  for name in args.names or known:
    notebook, clock = with_first_cells(read(known[name]), name), time.monotonic()
    if not args.links:
      notebook = cleaned(run(notebook))
    nbformat.validate(notebook)
    nbformat.write(notebook, known[name])
    size = known[name].stat().st_size
    print(f"{name}: {time.monotonic() - clock:.0f} s, {size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
  main()
