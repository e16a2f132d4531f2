"""train.py on data of the user's own: files of every kind, epochs, changes of them."""

import json
import subprocess
import sys

import pytest

from jaxpeft.data import toy
from tests.support.commands import ROOT

pytestmark = pytest.mark.slow
ROWS = toy.problems(2, "train", 60, seed=0)


def train(folder, data, *args, status=0):
  command = [
    sys.executable, "train.py", "--config=configs/lora.py", f"--workdir={folder}",
    f"--config.data.train={data}", f"--config.data.eval={data}", "--config.eval.task=",
    "--config.train.batch_size=8", "--config.train.log_every=1",
    "--config.eval.loss_limit=8", *args,
  ]  # fmt: skip
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
  assert done.returncode == status, done.stderr[-3000:]
  return done.stderr


def losses(folder):
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  return [x["loss"] for x in map(json.loads, lines) if "loss" in x]


def write_jsonl(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_parquet_trains_as_jsonl_and_epochs_count(tmp_path):
  pa = pytest.importorskip("pyarrow")
  from pyarrow import parquet

  write_jsonl(tmp_path / "d.jsonl", ROWS)
  parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "d.parquet")
  for name in ("d.jsonl", "d.parquet"):
    out = train(tmp_path / name[2:], tmp_path / name, "--config.train.epochs=1")
    assert "4 steps are 1." in out
  assert len(losses(tmp_path / "jsonl")) == 4
  assert losses(tmp_path / "jsonl") == losses(tmp_path / "parquet")


def test_changed_data_and_lost_configs_are_refused_and_nothing_is_lost(tmp_path):
  data, folder = tmp_path / "d.jsonl", tmp_path / "run"
  write_jsonl(data, ROWS)
  train(folder, data, "--config.train.steps=2")
  metrics = (folder / "metrics.jsonl").read_text()
  write_jsonl(data, ROWS[1:] + ROWS[:1])
  out = train(folder, data, "--config.train.steps=2", status=2)
  assert f"data.train={data} has changed since the run in {folder} began" in out
  assert "Traceback" not in out
  write_jsonl(data, ROWS)
  (folder / "config.json").rename(tmp_path / "config.json")
  out = train(folder, data, "--config.train.steps=2", status=2)
  assert "its config.json is gone" in out
  (tmp_path / "config.json").rename(folder / "config.json")
  assert (folder / "metrics.jsonl").read_text() == metrics
  assert "is finished" in train(folder, data, "--config.train.steps=2")
