"""Trackers by name, with packages that only write down what they are given; times."""

import json
import sys

import pytest

import jaxpeft
from jaxpeft import config
from jaxpeft.training import log, trackers

# A package with the part of wandb and trackio that is used.
FAKE = """
import json, os
def say(*what):
  with open(os.environ["FAKE_OUT"], "a") as f:
    f.write(json.dumps([__name__, *what]) + "\\n")
class Run:
  def log(self, values, step): say("log", step, values)
  def finish(self): say("finish")
def init(**options):
  if os.environ.get("FAKE_FAILS") == __name__: raise OSError("no login\\nmore")
  say("init", options)
  return Run()
"""


@pytest.fixture
def said(tmp_path, monkeypatch):
  """A function that returns, once, what the packages wandb and trackio were told."""
  out = tmp_path / "said.jsonl"
  for name in ("wandb", "trackio"):
    (tmp_path / f"{name}.py").write_text(FAKE)
    monkeypatch.delitem(sys.modules, name, raising=False)
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.setenv("FAKE_OUT", str(out))

  def read():
    lines = [json.loads(x) for x in out.read_text().splitlines()]
    out.unlink()
    return lines

  yield read
  for name in ("wandb", "trackio"):
    sys.modules.pop(name, None)


def run_config(tracker):
  c = config.base()
  c.log.tracker = tracker
  return c


def test_trackers_get_config_and_numbers_and_are_closed(tmp_path, said):
  workdir = tmp_path / "mine"
  workdir.mkdir()
  c = run_config("wandb,trackio,tensorboard")
  logs = log.Log(workdir, -1, c)
  logs.write(0, base_accuracy=0.5, base_samples=["a"])
  logs.write(5, loss=1.25, done=True)
  logs.close()
  told = said()
  for name in ("wandb", "trackio"):
    start, *rest = [line[1:] for line in told if line[0] == name]
    assert start[0] == "init"
    assert start[1]["project"] == "jaxpeft"
    assert start[1]["config"] == config.to_json(c)
    assert start[1]["resume"] == "allow"
    assert start[1]["name"].startswith("mine")
    # Numbers only, neither texts nor switches nor times.
    assert rest == [
      ["log", 0, {"base_accuracy": 0.5}],
      ["log", 5, {"loss": 1.25}],
      ["finish"],
    ]
  assert list((workdir / "tensorboard").iterdir())


def test_a_resumed_run_goes_on_with_the_same_run_of_the_tracker(tmp_path, said):
  c = run_config("wandb,trackio")
  found = []
  for step in (-1, 5):
    logs = log.Log(tmp_path, step, c)
    logs.write(5, loss=1.0)
    logs.close()
    found.append({x[0]: x[2] for x in said() if x[1] == "init"})
  assert found[0] == found[1]
  (tmp_path / "other").mkdir()
  log.Log(tmp_path / "other", -1, c)
  other = {x[0]: x[2] for x in said() if x[1] == "init"}
  assert other["wandb"]["id"] != found[0]["wandb"]["id"]
  assert other["trackio"]["name"] != found[0]["trackio"]["name"]


def test_a_tracker_that_does_not_start_is_one_line(tmp_path, said, monkeypatch):
  monkeypatch.setenv("FAKE_FAILS", "trackio")
  with pytest.raises(jaxpeft.InputError, match=r"trackio does not start: no login; "):
    log.Log(tmp_path, -1, run_config("wandb,trackio"))
  assert [line[:2] for line in said()][-1] == ["wandb", "finish"]


def test_none_writes_nothing_but_metrics(tmp_path):
  logs = log.Log(tmp_path, -1, run_config("none"))
  logs.write(1, loss=1.0)
  logs.close()
  assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_names_are_checked():
  assert trackers.check("tensorboard, tensorboard") == ["tensorboard"]
  assert trackers.check("none") == []
  with pytest.raises(jaxpeft.InputError, match=r"'wandbb'. Did you mean 'wandb'"):
    trackers.check("tensorboard,wandbb")


def test_a_missing_package_is_one_line(monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(jaxpeft.InputError, match=r"^log.tracker=wandb: wandb is not ins"):
    trackers.check("wandb")


def test_times_go_on_where_a_run_goes_on(tmp_path, monkeypatch):
  """A clock that jumps moves neither `elapsed_s` nor tokens/s."""
  now, wall = [1000.0], [2e9]
  monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
  monkeypatch.setattr(log.time, "time", lambda: wall[0])
  logs = log.Log(tmp_path, -1)
  bar = log.Progress(10, 0)
  speeds = []
  for step in (1, 2, 3):
    now[0] += 2
    wall[0] -= 1e9
    bar.count([[1, 1, 1, 0]])
    speeds.append(bar.show(step, 1.0, 1.0))
    logs.write(step, tokens_per_s=speeds[-1])
  assert speeds == [1.5] * 3
  assert [line["time"] for line in logs.lines] == [1e9, 0, -1e9]
  assert [line["elapsed_s"] for line in logs.lines] == [2, 4, 6]
  now[0] = 5.0  # another start of the machine
  logs = log.Log(tmp_path, 2)
  now[0] += 1
  logs.write(3)
  assert [line["elapsed_s"] for line in log.read(logs._path)] == [2, 4, 5]
