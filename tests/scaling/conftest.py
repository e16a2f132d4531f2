"""The command `scaling`, in this process."""

import sys

import pytest

from jaxpeft import __main__


@pytest.fixture
def command(monkeypatch, capsys):
  """Runs `python -m jaxpeft scaling ...`; gives (status, stdout, stderr)."""

  def run(*words):
    monkeypatch.setattr(sys, "argv", ["jaxpeft", "scaling", *map(str, words)])
    try:
      __main__.main()
      status = 0
    except SystemExit as e:
      status = e.code
    shown = capsys.readouterr()
    return status, shown.out, shown.err

  return run
