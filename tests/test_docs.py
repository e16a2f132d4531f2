"""What people read names everything that there is."""

import pathlib
import re
import subprocess
import sys

import pytest

from jaxpeft import adapters, config

ROOT = pathlib.Path(__file__).parents[1]


def keys(section, place=""):
  """Every key of a config, sections included."""
  for name, value in section.items():
    yield place + name
    if hasattr(value, "items"):
      yield from keys(value, f"{place}{name}.")


def test_help_has_every_option_with_a_comment():
  options = config.options()
  assert {option.key for option in options} == set(keys(config.base()))
  assert all(option.comment for option in options)


@pytest.mark.parametrize("page", ["README.md", "docs/methods.md"])
def test_pages_name_every_method(page):
  text = (ROOT / page).read_text()
  assert not [name for name in adapters.METHODS if f"`{name}`" not in text]


def test_links_lead_somewhere():
  for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
      if "://" not in target:
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize(
  ("words", "says"),
  [
    (["train.py", "--help"], "--config.train.keep_best=True"),
    (["eval.py", "--help"], "--ckpt"),
    (["-m", "jaxpeft", "list"], "svft_banded"),
  ],
)
def test_help_and_list(words, says):
  command = [sys.executable, *words]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert says in done.stdout


def test_readme_is_short():
  lines = (ROOT / "README.md").read_text().splitlines()
  assert len(lines) <= 150
  assert any(".png" in line for line in lines[:20]), "a picture on the first screen"
