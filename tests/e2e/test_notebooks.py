"""The notebooks run from top to bottom."""

import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]


PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LONG = {"memory": [pytest.mark.slow]}  # it compiles fifteen steps


@pytest.mark.parametrize(
  "path", [pytest.param(p, id=p.stem, marks=LONG.get(p.stem, [])) for p in PATHS]
)
def test_notebook_runs(path):
  nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
  notebook = nbformat.read(path, as_version=4)
  client = nbclient.NotebookClient(
    notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": ROOT}}
  )
  client.execute()
