"""What is going on is said every few seconds, also where no terminal is."""

import io
import itertools
import re
import threading
import time

import pytest

from jaxpeft import console


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  """A clock that only the test moves."""
  now = [0.0]
  monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
  return now


def test_a_log_has_a_line_every_few_seconds_and_none_of_what_is_quick(clock, capsys):
  with console.Bar("adapting", 84, "weights") as bar:
    for _ in range(84):
      clock[0] += 0.25
      bar.update()
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 4  # after 5, 10, 15 and 20 of 21 seconds
  assert lines[0] == "adapting: 20 of 84 weights, 5 s, about 16 s left"
  for _ in console.progress(range(3), "quick", 3, "batches"):
    clock[0] += 1
  assert capsys.readouterr().err == ""


def test_lines_become_rarer_but_do_not_end(clock, capsys):
  for _ in console.progress(range(3600), "answers", 3600, "batches"):
    clock[0] += 1
  spent = [int(re.search(r", (\d+) s, about", x)[1])
           for x in capsys.readouterr().err.splitlines()]  # fmt: skip
  pauses = [b - a for a, b in itertools.pairwise(spent)]
  assert 100 < len(spent) < 160
  assert min(pauses) == 5
  assert max(pauses) == 30


def test_without_a_label_and_in_other_processes_nothing_is_said(
  clock, capsys, monkeypatch
):
  for label in (None, "answers"):
    if label:
      monkeypatch.setattr(console.distributed, "is_main", lambda: False)
    for _ in console.progress(range(20), label, 20, "batches"):
      clock[0] += 1
  with console.waiting("compiling"):
    time.sleep(0.01)
  assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar_and_no_lines(monkeypatch):
  monkeypatch.setattr(console.sys, "stderr", Terminal())
  monkeypatch.setattr(console.tqdm.tqdm, "monitor_interval", 0)
  bar = console.Bar("adapting", 100, "weights")
  bar._bar.delay = 0
  for _ in range(50):
    bar.update()
  bar._bar.refresh()
  text = console.sys.stderr.getvalue()
  assert "adapting" in text
  assert " 50%" in text
  assert "about" not in text


def test_waiting_says_how_long_until_it_ends(clock, monkeypatch):
  said, twice, speakers = [], threading.Event(), []

  def note(text):
    said.append(text)
    speakers.append(threading.current_thread())
    clock[0] += 5
    if len(said) == 2:
      twice.set()

  monkeypatch.setattr(console, "_pause", lambda spent: 0.02)
  monkeypatch.setattr(console, "note", note)

  @console.waiting("compiling")
  def fails():
    assert twice.wait(300)
    raise ValueError("inside")

  with pytest.raises(ValueError, match="inside"):
    fails()
  assert said[:2] == ["still compiling, 0 s", "still compiling, 5 s"]
  assert len(set(speakers)) == 1
  assert not speakers[0].is_alive()  # so that it says no more
