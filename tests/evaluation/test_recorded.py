"""Replies kept in a file: a killed run goes on, and nothing foreign is read."""

import json
import pathlib
import signal
import subprocess
import sys

import pytest

import jaxpeft
from jaxpeft import config
from jaxpeft.errors import InputError
from jaxpeft.evaluation.strategies import chains, recorded
from tests.support import scripted

RATES = (0.4, 0.9, 0.3, 0.5, 0.6)
ABOUT = dict(weights="abc", seed=0)
ROOT = pathlib.Path(__file__).parents[2]


def _run(ask, m=4, n=3):
  return chains.run(scripted.problems(10), ask, [1 + 2 * n] * m)


def _script():
  return scripted.Script(*RATES, by_key=True)


def test_a_file_belongs_to_a_models_weights_and_options():
  model, c = jaxpeft.load("embedded", dtype="float32"), config.base()
  want = recorded.about(c, model)
  assert recorded.about(c, model.replace()) == want
  norm = model.params["final_norm"]
  other = model.replace(params=model.params | dict(final_norm=norm.at[0].add(1e-3)))
  assert {k for k, x in recorded.about(c, other).items() if x != want[k]} == {"weights"}
  c.eval.min_p = 0.5
  assert recorded.about(c, model) == want | dict(min_p=0.5)


def test_a_second_run_asks_nothing_and_a_larger_one_only_the_rest(tmp_path):
  path = tmp_path / "chains.jsonl"
  first = _run(recorded.Recorded(_script(), path, ABOUT))
  ask = _script()
  assert _run(recorded.Recorded(ask, path, ABOUT)) == first
  assert ask.calls == 0
  larger = _run(recorded.Recorded(ask, path, ABOUT), m=6, n=5)
  assert larger == _run(_script(), m=6, n=5)
  keys = {x.key for x in ask.seen}
  assert keys
  assert all(c >= 4 or number > 6 for _, c, number in keys)


def test_other_prompts_and_options_are_asked_anew(tmp_path):
  path, ask = tmp_path / "chains.jsonl", _script()
  kept = recorded.Recorded(ask, path, ABOUT)
  asked = scripted.problems(10)
  chains.run(asked, kept, [1], temperatures=(0.7, 0.7, 0.7))
  chains.run(asked, kept, [1], temperatures=(0.8, 0.7, 0.7))
  chains.run(asked._replace(shots=[[{}]] * 10), kept, [1])
  assert ask.calls == 3


def test_a_block_is_written_before_the_next_is_asked(tmp_path):
  path, lines = tmp_path / "chains.jsonl", []
  script = _script()

  def ask(requests):
    lines.append((len(requests), len(path.read_text().splitlines())))
    return script(requests)

  chains.run(scripted.problems(10), recorded.Recorded(ask, path, ABOUT, 4), [1])
  assert lines == [(4, 1), (4, 5), (2, 9)]


def test_a_line_that_was_cut_is_asked_again(tmp_path):
  path = tmp_path / "chains.jsonl"
  first = _run(recorded.Recorded(_script(), path, ABOUT))
  data = path.read_bytes()
  path.write_bytes(data[:-7])
  ask = _script()
  assert _run(recorded.Recorded(ask, path, ABOUT)) == first
  assert len(ask.seen) == 1
  assert path.read_bytes() == data
  path.write_bytes(data[: len(ABOUT)])  # within the first line
  assert _run(recorded.Recorded(_script(), path, ABOUT)) == first
  assert len(path.read_bytes()) == len(data)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda lines: [*lines[:3], "no json\n", *lines[3:]], "line 4"),
    (lambda lines: [*lines[:3], "[1]\n", *lines[3:]], "line 4"),
    (lambda lines: [*lines[:1], '{"key": "a", "reply": 3}\n'], "line 2"),
    (lambda lines: lines[1:], "line 1"),
    (lambda lines: ["[" * 100_000 + "\n"], "line 1"),
    (
      lambda lines: [json.dumps(dict(about=dict(ABOUT, seed=1))) + "\n"],
      r"\(seed diff",
    ),
    (lambda lines: ['{"about": 3}\n'], "another configuration"),
  ],
)
def test_foreign_files_are_refused_and_kept(tmp_path, change, words):
  path = tmp_path / "chains.jsonl"
  _run(recorded.Recorded(_script(), path, ABOUT))
  path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
  before = path.read_bytes()
  with pytest.raises(InputError, match=words):
    recorded.Recorded(_script(), path, ABOUT)
  assert path.read_bytes() == before


_PROGRAM = """
import pathlib, sys, time
from jaxpeft.evaluation.strategies import chains, recorded
from tests.support import scripted
script, asked = scripted.Script(0.4, 0.9, 0.3, 0.5, 0.6, by_key=True), []
def ask(requests):
  asked.append(len(requests))
  print(len(requests), flush=True)
  if len(asked) == 7:
    time.sleep(600)  # until it is killed
  return script(requests)
path = pathlib.Path(sys.argv[1])
kept = recorded.Recorded(ask, path, dict(weights="abc", seed=0), 8)
chains.run(scripted.problems(10), kept, [7] * 4)
"""


def test_a_killed_process_loses_at_most_one_block(tmp_path):
  path = tmp_path / "chains.jsonl"
  command = [sys.executable, "-c", _PROGRAM, str(path)]
  with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
    assert process.stdout is not None
    asked = [int(process.stdout.readline()) for _ in range(7)]  # the 7th is under way
    process.send_signal(signal.SIGKILL)
    process.wait()
  written = len(path.read_bytes().split(b"\n")) - 2
  assert written == sum(asked[:6])
  ask = _script()
  assert _run(recorded.Recorded(ask, path, ABOUT)) == _run(_script())
  whole = _script()
  _run(whole)
  assert len(ask.seen) == len(whole.seen) - written
