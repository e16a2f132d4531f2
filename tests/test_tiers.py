"""Tiers of tests: a renamed test must not slip into the fast one."""

import pathlib
import re

TESTS = pathlib.Path(__file__).parent


def test_medium_tests_exist():
  for name in (TESTS / "medium.txt").read_text().split():
    file, function = name.split("::")
    text = (TESTS / file).read_text() if (TESTS / file).exists() else ""
    assert re.search(rf"^def {function}\(", text, re.M), f"medium.txt: no test {name}"
