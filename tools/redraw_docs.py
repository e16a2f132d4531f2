"""Draws the pictures of docs/ again, from the tables of the pages that show them.

  python tools/redraw_docs.py [FOLDER]

docs/compare.png shows the first table of docs/benchmarks.md; docs/token_learning.png
the first "fraction" table of docs/token_selection.md. FOLDER, or docs/, gets both.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for `benchmarks`

from benchmarks import token_learning  # noqa: E402
from jaxpeft.sweeps import plots  # noqa: E402


def table(page: pathlib.Path, first: str) -> list[list[str]]:
  """The cells of the table on a page whose first column is called `first`."""
  text = page.read_text()
  start = text.index(f"| {first} |")
  lines = text[start:].split("\n\n")[0].splitlines()[2:]
  return [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]


def shares(text: str) -> list[float]:
  """The percentages in a text, as shares of 1."""
  return [float(found) / 100 for found in re.findall(r"([\d.]+)%", text)]


def methods() -> list[dict]:
  """The rows of the comparison of all methods."""
  rows = []
  for name, trained, accuracy, interval, *_ in table(
    ROOT / "docs" / "benchmarks.md", "config"
  ):
    mean, both = shares(accuracy)[0], tuple(shares(interval))
    count = int(trained.replace(",", ""))
    rows.append(dict(name=name, trained=count, accuracy=mean, interval=both))
  return rows


def fractions() -> list[tuple]:
  """The rows of `benchmarks/token_learning.py` with random tokens."""
  rows = []
  for fraction, _, steps, seconds, _ in table(
    ROOT / "docs" / "token_selection.md", "fraction"
  ):
    rows.append((float(fraction), "steps", *shares(steps)))
    rows.append((float(fraction), "seconds", *shares(seconds)))
  return rows


def main(folder: pathlib.Path):
  """Writes both pictures."""
  plots.pareto(methods(), folder / "compare.png")
  token_learning.plot(fractions(), folder / "token_learning.png")


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs"))
