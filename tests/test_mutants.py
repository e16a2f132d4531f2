"""The list of mistakes in tools/mutant_list.py keeps up with the code."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tools"))

import mutants  # pyright: ignore[reportMissingImports]


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda m: m.name)
def test_a_mistake_can_still_be_made(mutant):
  assert not mutants.check(mutant)


def test_there_are_enough_and_each_has_its_name():
  names = [mutant.name for mutant in mutants.MUTANTS]
  assert len(names) >= 60
  assert len(set(names)) == len(names)
