"""The study of scaling laws: its text, its runs, and what a kill leaves."""

import argparse
import csv
import json
import math
import pathlib

import jax
import numpy as np
import pytest

from jaxpeft import config as configs
from jaxpeft import config_file, options
from jaxpeft.commands import scaling as commands
from jaxpeft.errors import InputError
from jaxpeft.sweeps.study import grid, members, pretrain
from jaxpeft.sweeps.study import record as records
from jaxpeft.sweeps.study.source import Source, draw, probabilities

ROOT = pathlib.Path(__file__).parents[2]
SMALL = Source(8, (0.1, 0.4, 0.5), 3, 1.2, seed=1)


def study(**changes):
  """A study of 2 x 2 runs with two seeds, of a few steps each."""
  c = configs.base()
  c.adapt.main = dict(name="Full", match=".*")
  c.data.max_tokens, c.train.batch_size = 8, 2
  s = c.scaling
  s.sizes, s.budgets, s.seeds = ("8x1", "8x2"), (3.5e6, 5e6), 2
  s.tokens_per_parameter, s.rates, s.held_out = (1e-3, 1e3), (1e-2,), 16
  s.text.vocabulary, s.text.orders = 8, (0.1, 0.4, 0.5)
  for key, value in changes.items():
    s[key] = value
  return c


@pytest.fixture(autouse=True, scope="module")
def _programs():
  """Compiles the programs of a shape once for all tests of this file."""
  make, made = members.Group, {}

  def group(config, source, size):
    s = config.scaling
    parts = config.seed, config.optim, config.train, s.held_out, source, size
    if str(parts) not in made:
      made[str(parts)] = make(config, source, size)
    return made[str(parts)]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(members, "Group", group)
    yield


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  """A finished study's directory."""
  folder = tmp_path_factory.mktemp("study")
  pretrain.run(study(), str(folder))
  return folder


# ---- the text


def test_entropy_is_that_of_a_long_text():
  """The floor, from the stationary distribution, against -log p of drawn text."""
  text = draw(SMALL.chain, jax.random.key(1), 4000, 32)
  p = np.asarray(probabilities(SMALL.chain, text), np.float64)
  taken = np.take_along_axis(p, np.asarray(text)[:, 2:, None], 2)[..., 0]
  rows = -np.log(taken).mean(1)
  error = rows.std() / math.sqrt(len(rows))
  assert error < 0.005
  assert abs(rows.mean() - SMALL.entropy) < 4 * error
  first, last = rows.mean(), -np.log(taken[:, :3]).mean()
  assert abs(first - last) < 0.03, "rows do not begin in the stationary distribution"


def test_probabilities_are_those_of_the_tables():
  """A definition in a loop, for every context."""
  p = SMALL.next_token()
  assert np.allclose(p.sum(1), 1)
  zipf = np.array([1 / r**1.2 for r in range(1, 9)])
  zipf /= zipf.sum()
  shares = np.array([1, 1 / 2, 1 / 3]) / (1 + 1 / 2 + 1 / 3)
  for a, b in ((0, 0), (3, 5), (7, 2)):
    want = 0.1 * zipf
    for share, one, two in zip(
      shares, SMALL.tables[b], SMALL.tables[8 + 8 * a + b], strict=True
    ):
      want[one] += 0.4 * share
      want[two] += 0.5 * share
    assert np.allclose(p[8 * a + b], want)
    row = jax.numpy.array([[a, b, 0]])
    assert np.allclose(probabilities(SMALL.chain, row)[0, 0], want, atol=1e-6)


def test_drawn_tokens_have_these_probabilities():
  text = np.asarray(draw(SMALL.chain, jax.random.key(2), 20_000, 12))
  context = 8 * text[:, :-2] + text[:, 1:-1]
  counts = np.zeros((64, 8))
  np.add.at(counts, (context.ravel(), text[:, 2:].ravel()), 1)
  often = counts.sum(1) > 2000
  assert often.sum() > 5
  share = counts[often] / counts[often].sum(1, keepdims=True)
  assert np.abs(share - SMALL.next_token()[often]).max() < 0.04
  seen = counts.sum(1) / counts.sum()
  assert np.abs(seen - SMALL.stationary).max() < 0.005


def test_no_text_is_seen_twice():
  """Rows of all steps, seeds, and the held-out ones are different draws."""
  c = study()
  c.data.max_tokens = 40
  chain = grid.source(c).chain
  found = [members.held_out_text(c, chain)]
  for first in (0, members.CHUNK):
    keys = members.text_keys(c, [0, 1], first)
    found.append(members.training_text(c, chain, keys).reshape(-1, 41))
  rows = {tuple(row) for text in found for row in np.asarray(text)}
  assert len(rows) == 16 + 2 * 2 * members.CHUNK * 2


@pytest.mark.parametrize(
  ("fields", "says"),
  [
    (dict(vocabulary=65), "vocabulary"),
    (dict(vocabulary=1), "two tokens"),
    (dict(orders=(0.5, 0.6)), "sum to 1"),
    (dict(orders=(0.0, 1.0)), "above 0"),
    (dict(orders=(1.0,)), "two orders"),
    (dict(orders=("a", "b")), "orders: 'a' is no number"),
    (dict(candidates=0), "candidate"),
    (dict(zipf=-1.0), "zipf"),
    (dict(seed=-1), "seed"),
  ],
)
def test_a_text_that_cannot_be_is_refused(fields, says):
  with pytest.raises(InputError, match=says):
    Source(**fields)


# ---- the runs


def test_the_tables_have_the_columns_and_one_end_per_run(done):
  with open(done / "points.csv") as file:
    rows = list(csv.DictReader(file))
  assert list(rows[0])[:9] == "run width depth n n_no_embed d step flops loss".split()
  assert len(rows) == 8
  floor = grid.source(study()).entropy
  for row in rows:
    n, d, flops = (float(row[k]) for k in ("n", "d", "flops"))
    body = 13 * 8 * 8 * int(row["depth"]) + 8 * (2 * int(row["depth"]) + 1)
    assert float(row["n_no_embed"]) == body
    assert n == body + 8 * 8
    assert d == int(row["step"]) * 2 * 8
    assert flops == 6 * n * d
    assert abs(flops / float(row["budget"]) - 1) < 0.03
    assert floor < float(row["loss"]) < 2.2
  with open(done / "curves.csv") as file:
    assert len(list(csv.DictReader(file))) > len(rows)


def test_more_text_lowers_the_loss(done):
  with open(done / "curves.csv") as file:
    rows = list(csv.DictReader(file))
  for run in {row["run"] for row in rows}:
    losses = [float(row["loss"]) for row in rows if row["run"] == run]
    assert losses[-1] < losses[0]


def test_a_killed_study_ends_with_the_same_points(done, tmp_path):
  """A process that was killed while it wrote the second group left half of it."""
  lines = (done / "points.jsonl").read_text().splitlines(True)
  end = [i for i, line in enumerate(lines) if json.loads(line)["final"]]
  kept = lines[: end[2] + 2]  # one run of a group, and a line of the other
  assert not json.loads(kept[-1])["final"]
  (tmp_path / "config.json").write_bytes((done / "config.json").read_bytes())
  (tmp_path / "points.jsonl").write_text("".join(kept) + '{"run": "8x')
  pretrain.run(study(), str(tmp_path))
  for name in ("points.csv", "curves.csv"):
    assert (tmp_path / name).read_bytes() == (done / name).read_bytes()
  assert sorted((tmp_path / "points.jsonl").read_text().splitlines(True)) == sorted(
    lines
  )


def test_a_finished_study_trains_nothing(done, monkeypatch):
  monkeypatch.setattr(members, "Group", None)
  result = pretrain.run(study(), str(done))
  assert result.points == done / "points.csv"


def test_another_study_is_refused_in_its_directory(done):
  with pytest.raises(InputError, match=r"scaling\.held_out"):
    pretrain.run(study(held_out=17), str(done))


@pytest.mark.slow  # it compiles one more program
def test_seeds_side_by_side_are_what_they_are_alone():
  c = study()
  group = members.Group(c, grid.source(c), grid.Size(8, 1))
  rates = np.full((members.CHUNK, 1), 1e-2)

  def losses(seeds):
    state = group.start(seeds)
    state = group.advance(state, seeds, np.repeat(rates, len(seeds), 1), 0)
    return group.losses(state)

  both = losses([0, 1])
  assert abs(both[0] - both[1]) > 1e-4
  assert np.allclose(both, [losses([0])[0], losses([1])[0]], rtol=1e-5)


def test_steps_at_a_rate_of_zero_change_no_weight():
  c = study()
  group = members.Group(c, grid.source(c), grid.Size(8, 1))
  start, end = group.start([0]), group.start([0])
  end = group.advance(end, [0], np.zeros((members.CHUNK, 1)), 0)
  for a, b in zip(
    jax.tree.leaves(start.trainable), jax.tree.leaves(end.trainable), strict=True
  ):
    assert np.array_equal(a, b)


def test_the_schedule_ends_with_the_run():
  c = study()
  c.optim.schedule, c.optim.warmup, c.optim.final_lr = "linear", 0.1, 0.0
  for steps in (20, 50):
    rates = members.rates(c, 0.3, steps)
    assert len(rates) == steps
    assert rates.max() == pytest.approx(0.3)
    assert 0 < rates[-1] < 0.3 * 1.2 / (0.9 * steps)


def test_rates_are_tuned_by_a_parabola_and_a_line():
  """Losses made from a known best rate, 0.1 / sqrt(n)."""
  c = study(rates=(1e-3, 2e-3, 4e-3, 8e-3), tuned=2)
  lines = []
  for size in grid.sizes(c):
    best = 0.1 / math.sqrt(grid.parameters(c, size)[0])
    for rate in c.scaling.rates:
      loss = 2 + math.log(rate / best) ** 2
      lines.append(dict(run=f"{size.name}-tune", rate=rate, loss=loss))
  found = pretrain.learning_rates(c, lines)
  for size in grid.sizes(c):
    best = 0.1 / math.sqrt(grid.parameters(c, size)[0])
    assert found[size.name] == pytest.approx(best)
  c = study(rates=(1e-3, 2e-3, 4e-3, 8e-3), tuned=1)
  (rate,) = set(pretrain.learning_rates(c, lines).values())
  assert rate == pytest.approx(0.1 / math.sqrt(grid.parameters(c, grid.Size(8, 1))[0]))


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    (dict(sizes=()), "no study"),
    (dict(sizes=("8",)), "WIDTHxDEPTH"),
    (dict(sizes=("12x1",)), "multiple of 8"),
    (dict(sizes=("8x0",)), "depth"),
    (dict(sizes=("8x1", "8x1")), "twice"),
    (dict(budgets=(0.0,)), r"scaling\.budgets: 0\.0"),
    (dict(budgets=(math.nan,)), r"scaling\.budgets: nan"),
    (dict(budgets=(1e3,)), "no run is left"),
    (dict(budgets=(3.5e6, 3.50001e6)), "equal to four digits"),
    (dict(seeds=0), r"scaling\.seeds 0"),
    (dict(rates=()), r"scaling\.rates"),
    (dict(rates=(1e-2, 1e-2)), r"scaling\.rates .* twice"),
    (dict(tune_tokens=1e12, rates=(1e-2, 2e-2)), r"scaling\.tune_tokens give a run"),
    (dict(tokens_per_parameter=(1.0,)), "two numbers"),
    (dict(held_out=0), r"scaling\.held_out 0"),
  ],
)
def test_wrong_options_get_one_line_and_write_nothing(changes, says, tmp_path):
  with pytest.raises(InputError, match=says):
    pretrain.run(study(**changes), str(tmp_path / "out"))
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("section", "key"), [("optim", "schedule"), ("optim", "name"), ("objective", "name")]
)
def test_an_unknown_name_leaves_no_directory(section, key, tmp_path):
  config = study()
  config[section][key] = "foo"
  with pytest.raises(InputError, match=r"unknown .*foo"):
    pretrain.run(config, str(tmp_path / "out"))
  assert not (tmp_path / "out").exists()


def test_a_run_that_diverges_is_named(tmp_path):
  c = study(rates=(1e30,), budgets=(3.5e6,), sizes=("8x1",))
  with pytest.raises(InputError, match=r"8x1-3\.5e\+06-s0 diverged"):
    pretrain.run(c, str(tmp_path))


@pytest.mark.parametrize("preset", ["", ":full", ":quick"])
def test_the_config_is_a_study_of_at_least_six_sizes_and_budgets(preset):
  config = config_file.load(f"{ROOT}/configs/scaling_tiny.py{preset}", [])
  grid.check(config)
  runs = grid.runs(config)
  assert len({run.size for run in runs}) >= 6
  assert len({run.budget for run in runs}) >= 6
  for budget in config.scaling.budgets:
    assert len({run.size for run in runs if run.budget == budget}) >= 4
  with pytest.raises(InputError, match="scaling run"):
    options.check(config)


def test_only_run_takes_options_of_a_config():
  args = argparse.Namespace(action="plan", rest=["--config.seed=1"])
  with pytest.raises(InputError, match=r"unrecognized arguments: --config\.seed=1"):
    commands.run(args)


def test_a_damaged_line_is_named(tmp_path):
  (tmp_path / "points.jsonl").write_text('{"run": "a"}\n[1]\n{"run": "b"}\n')
  with pytest.raises(InputError, match="line 2"):
    records.Record(tmp_path / "points.jsonl")
