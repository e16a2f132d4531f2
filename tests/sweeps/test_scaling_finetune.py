"""The study of fine-tuning: a grid of ranks and rows on a tiny model."""

import csv
import json

import pytest

from jaxpeft import config as configs
from jaxpeft.errors import InputError
from jaxpeft.scaling import plan
from jaxpeft.sweeps.study import finetune


def study(**changes):
  """Six runs of at most three steps on the embedded toy."""
  c = configs.base()
  c.adapt.main = dict(name="LoRA", match="layers_.*/attn/q", rank=2, alpha=4.0)
  c.data.max_tokens, c.train.batch_size = 128, 2
  c.eval.task, c.eval.loss_limit = "", 4
  c.scaling.ranks, c.scaling.rows, c.scaling.rates = (1, 2), (2, 4, 6), (1e-2,)
  for key, value in changes.items():
    c.scaling[key] = value
  return c


def measured(_, base, one):
  """Losses of a known law, without training."""
  n = 1000 * one.rank
  loss = 0.5 + 4 / (n**0.1 * one.rows**0.4) + abs(one.rate - 1e-2)
  return dict(run=one.name, rank=one.rank, n=n, d=one.rows, step=1, loss=loss,
              rate=one.rate, seed=one.seed, final=True)  # fmt: skip


def test_a_study_fits_the_best_rates_and_goes_on_after_a_kill(tmp_path, monkeypatch):
  config = study(ranks=(1, 4, 16), rates=(1e-2, 3e-2))
  monkeypatch.setattr(finetune, "_measure", measured)
  monkeypatch.setattr(finetune.experiment, "read_base", lambda config: None)
  text = finetune.run(config, str(tmp_path))
  assert "0.5" in text
  with open(tmp_path / "points.csv") as file:
    rows = list(csv.DictReader(file))
  assert list(rows[0]) == finetune.COLUMNS
  assert len(rows) == 9
  assert {row["rate"] for row in rows} == {"0.01"}
  law = plan.named(str(tmp_path / "law.json")).law
  assert (law.E, law.alpha, law.beta) == pytest.approx((0.5, 0.1, 0.4), abs=1e-3)
  lines = (tmp_path / "points.jsonl").read_text().splitlines(True)
  (tmp_path / "points.jsonl").write_text("".join(lines[:5]) + lines[5][:9])
  again = []
  monkeypatch.setattr(
    finetune, "_measure", lambda *a: again.append(a[2].name) or measured(*a)
  )
  assert finetune.run(config, str(tmp_path)) == text
  assert (tmp_path / "points.jsonl").read_text() == "".join(lines)
  assert again == [json.loads(line)["run"] for line in lines[5:]]


def test_a_run_trains_lora_of_its_rank_on_its_rows():
  config = study()
  base = finetune.experiment.read_base(config)
  one, other = finetune.runs(config)[2], finetune.runs(config)[5]
  found = [finetune._measure(config, base, run) for run in (one, other)]
  assert [x["rank"] for x in found] == [1, 2]
  assert [x["n"] for x in found] == [4 * 256 * 1, 4 * 256 * 2]  # 4 layers, in + out
  assert all(x["d"] == 6 and x["loss"] > 0 for x in found)


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    (dict(ranks=(0,)), r"scaling\.ranks: 0"),
    (dict(rows=()), "no runs"),
    (dict(rows=(1.5,)), r"scaling\.rows: 1\.5"),
    (dict(rates=(-1.0,)), r"scaling\.rates: -1"),
    (dict(rates=("a",)), r"scaling\.rates: 'a'"),
    (dict(ranks=(1, 1)), r"scaling\.ranks \(1, 1\) has a value twice"),
  ],
)
def test_wrong_options_get_one_line(changes, says, tmp_path):
  with pytest.raises(InputError, match=says):
    finetune.run(study(**changes), str(tmp_path / "out"))
  assert not (tmp_path / "out").exists()


def test_a_model_that_is_missing_leaves_no_directory(tmp_path):
  config = study()
  config.model.source = "nowhere"
  with pytest.raises(InputError, match="nowhere"):
    finetune.run(config, str(tmp_path / "out"))
  assert not (tmp_path / "out").exists()


def test_a_method_without_a_rank_is_refused():
  config = study()
  config.adapt.main = dict(name="Full", match=".*")
  with pytest.raises(InputError, match="with a rank"):
    finetune.runs(config)
