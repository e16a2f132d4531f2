"""Rows of `compare` for bases with shots in their prompts."""

import json
import pathlib

import pytest

from jaxpeft.errors import InputError
from jaxpeft.evaluation.intervals import wilson
from jaxpeft.sweeps import compare, few_shot, sweep

ROOT = pathlib.Path(__file__).parents[2]
FILES = [f"{ROOT}/configs/{name}.py" for name in ("lora", "ia3")]
SHORT = ["--config.data.eval=embedded:one_step/test", "--config.eval.limit=6"]
SHORT += ["--config.data.train=embedded:one_step/train"]
SHORT += ["--config.eval.max_new_tokens=48"]


def test_configs_of_one_base_share_its_rows():
  plans = few_shot.plan(FILES, [2, 0, 2], SHORT)
  assert list(plans) == ["base, 0-shot", "base, 2-shot"]
  assert [c.eval.shots for c in plans.values()] == [0, 2]
  with pytest.raises(InputError, match=r"eval.shots 9999: there are only 8000 rows"):
    few_shot.plan(FILES, [9999], SHORT)
  with pytest.raises(InputError, match="below 0"):
    few_shot.plan(FILES, [-1], SHORT)


def test_rows_are_measured_once_and_stand_in_the_table(tmp_path, monkeypatch):
  plans = few_shot.plan(FILES[:1], [0, 2], SHORT)
  first = few_shot.rows(plans, tmp_path)
  assert [row["name"] for row in first] == list(plans)
  assert first[0]["accuracy"] == 1  # the toy's base solves one-step problems
  assert first[1]["accuracy"] < 1  # and has never seen shots
  assert first[0]["interval"] == list(wilson(6, 6))
  before = (tmp_path / "shots.jsonl").read_text()
  monkeypatch.setattr(few_shot, "_row", None)
  assert few_shot.rows(plans, tmp_path) == first
  assert (tmp_path / "shots.jsonl").read_text() == before
  run = dict(lr=1.0, trainable_parameters=7, accuracy=0.5, problems=6, seed=0)
  run |= dict(adapter_bytes=9, peak_memory_bytes=2**20, tokens_per_s=1.0)
  monkeypatch.setattr(
    sweep, "sweep", lambda *_: [sweep.Trained("lora", [run], [run], 1.0)]
  )
  text = compare.compare(FILES[:1], 1, [1.0], str(tmp_path), SHORT, (0, 2))
  lines = text.splitlines()
  assert lines[2].startswith("| base, 0-shot | 0 | 100.0% | ")
  assert [x.split(" |")[0] for x in lines[3:5]] == ["| lora", "| base, 2-shot"]
  assert "mean of 1 seeds on 6 held-out problems" in text
  assert (tmp_path / "pareto.png").stat().st_size > 5000
  assert [json.loads(x)["name"] for x in (tmp_path / "runs.jsonl").open()] == ["lora"]
