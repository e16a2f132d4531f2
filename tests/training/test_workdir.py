"""A run's directory: what may not change while a run is stopped."""

import json

import pytest

import jaxpeft
from jaxpeft import config as configs
from jaxpeft.training import workdir


@pytest.fixture(autouse=True)
def unlocked(monkeypatch):
  monkeypatch.setattr(workdir, "_lock", lambda _: None)


def config(**data):
  c = configs.base()
  c.data.update(data)
  return c.lock()


TRAIN, EVAL = {"data.train": "a" * 64}, {"data.eval": "b" * 64}


def test_data_that_changed_since_the_run_began_are_refused(tmp_path):
  c = config(train="t.jsonl", eval="e.jsonl")
  workdir.prepare(tmp_path, c, TRAIN | EVAL)
  workdir.prepare(tmp_path, c, TRAIN | EVAL)
  for changed in ({"data.train": "c" * 64} | EVAL, TRAIN | {"data.eval": "c" * 64}):
    with pytest.raises(jaxpeft.InputError, match=r"(t|e).jsonl has changed.*cccc"):
      workdir.prepare(tmp_path, c, changed)
  assert json.loads((tmp_path / "data.json").read_text()) == TRAIN | EVAL


def test_a_run_of_an_older_version_takes_the_data_as_they_are(tmp_path):
  workdir.prepare(tmp_path, config())
  assert not (tmp_path / "data.json").exists()
  workdir.prepare(tmp_path, config(), TRAIN)
  with pytest.raises(jaxpeft.InputError, match="has changed"):
    workdir.prepare(tmp_path, config(), {"data.train": "c" * 64})


@pytest.mark.parametrize("left", ["checkpoints", "metrics.jsonl", "adapter", "best"])
def test_a_run_without_its_config_is_refused(tmp_path, left):
  workdir.prepare(tmp_path, config(), TRAIN)
  (tmp_path / left).mkdir()
  (tmp_path / "config.json").unlink()
  with pytest.raises(jaxpeft.InputError, match=f"has {left} .*config.json is gone"):
    workdir.prepare(tmp_path, config(), TRAIN)
  assert not (tmp_path / "config.json").exists()
  (tmp_path / left).rmdir()
  workdir.prepare(tmp_path, config(), TRAIN)


def test_damaged_hashes_are_one_clear_line(tmp_path):
  workdir.prepare(tmp_path, config(), TRAIN)
  for text in ("[]", "{", "[" * 100_000, '{"data.train": 5}'):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(jaxpeft.InputError, match=r"cannot use --workdir|has changed"):
      workdir.prepare(tmp_path, config(), TRAIN)
