"""Plans: sizes, intervals, hours; and the command that prints them."""

import json

import numpy as np
import pytest

from jaxpeft.errors import InputError
from jaxpeft.planning import targets
from jaxpeft.scaling import laws, plan


def fitted(**changes):
  law = laws.Parametric(482.01, 2085.43, 1.8172, 0.3478, 0.3658)
  return laws.Fitted(law, **changes)


def test_a_plan_is_the_laws_optimum():
  found = plan.plan(fitted(), 1e21)
  n, d = laws.PUBLISHED["epoch"].law.optimum(1e21)
  assert (found.n.value, found.d.value) == (n, d)
  assert found.ratio.value == d / n == pytest.approx(21.59, abs=0.005)
  assert found.loss.value == pytest.approx(2.3055, abs=5e-5)
  assert found.penalty is None
  assert found.n.low is None
  assert found.notes == ()


def test_hours_are_those_of_llama_65b():
  # 1,022,362 hours of A100s for 1.4e12 tokens and 65.2e9 parameters [Touvron 2023]
  budget, hours = 6 * 65.2e9 * 1.4e12, 1_022_362
  mfu = budget / (hours * 3600 * 312e12)
  assert 0.45 < mfu < 0.5
  found = plan.plan(fitted(), budget, card="a100-80gb", mfu=mfu)
  assert found.device_hours == pytest.approx(hours)


def test_every_gpu_of_the_memory_planner_has_a_peak():
  assert set(targets._GPUS) <= set(plan.CARDS)
  for card, peak in dict(h100=989e12, v5e=197e12, t4=65e12).items():
    assert plan.peak(card) == peak
  with pytest.raises(InputError, match="Did you mean 'a100-80gb'"):
    plan.peak("a100-80")


def test_intervals_are_quantiles_of_what_each_sample_plans():
  rng = np.random.default_rng(0)
  names = ("A", "B", "E", "alpha", "beta")
  own = (482.01, 2085.43, 1.8172, 0.3478, 0.3658)
  samples = {k: v * np.exp(0.02 * rng.standard_normal(500))
             for k, v in zip(names, own, strict=True)}  # fmt: skip
  found = plan.plan(fitted(samples=samples), 1e22, level=0.8)
  each = [laws.Parametric(*row) for row in zip(*samples.values(), strict=True)]
  n, d = np.transpose([law.optimum(1e22) for law in each])
  loss = [law.frontier(1e22) for law in each]
  for value, many in (
    (found.n, n), (found.d, d), (found.ratio, d / n), (found.loss, loss),
  ):  # fmt: skip
    assert (value.low, value.high) == pytest.approx(np.quantile(many, [0.1, 0.9]))
    assert value.low < value.value < value.high


def test_a_covariance_gives_the_interval_of_the_delta_method():
  spread = np.diag([0.0, 0.0, 1e-4, 0.0, 0.0])  # of ln E alone: 1 %
  found = plan.plan(fitted(covariance=spread), 1e21)
  half = 1.96 * 0.01 * 1.8172
  assert found.loss.high - found.loss.value == pytest.approx(half, rel=0.05)
  assert found.loss.value - found.loss.low == pytest.approx(half, rel=0.05)
  assert found.n.low == pytest.approx(found.n.high)


def test_a_size_of_ones_own_costs_loss():
  best = plan.plan(fitted(), 1e21)
  same = plan.plan(fitted(), 1e21, n=best.n.value)
  assert same.penalty == pytest.approx(0, abs=1e-12)
  other = plan.plan(fitted(), 1e21, n=7e9)
  assert other.d.value == pytest.approx(1e21 / 6 / 7e9)
  assert other.penalty == pytest.approx(other.loss.value - best.loss.value)
  assert other.penalty == pytest.approx(0.0265, abs=5e-4)
  banded = plan.plan(laws.PUBLISHED["epoch"], 1e21, n=7e9)
  assert banded.loss.low < other.loss.value < banded.loss.high
  assert banded.n.low is None


def test_beyond_the_data_a_plan_says_that_it_extrapolates():
  known = fitted(span={"n": (1e8, 1e10), "d": (1e9, 1e11), "c": (1e18, 1e22)})
  assert plan.plan(known, 1e21).notes == ()
  high = plan.plan(known, 1e25).notes
  assert len(high) == 3
  assert "1e+03 times the most in the fitted data (1e+22)" in high[2]
  assert all("below the least" in note for note in plan.plan(known, 1e16).notes)
  body = plan.plan(laws.PUBLISHED["pearce-epoch"], 1e21).notes
  assert "without embeddings" in body[0]


@pytest.mark.parametrize("name", laws.PUBLISHED)
def test_every_published_law_plans(name):
  small, large = (plan.plan(plan.named(name), c) for c in (1e20, 1e23))
  for found in (small, large):
    assert 6 * found.n.value * found.d.value == pytest.approx(found.flops)
  assert small.n.value < large.n.value
  if small.loss.value is not None:
    assert 1.5 < large.loss.value < small.loss.value < 4


@pytest.mark.parametrize(
  ("change", "says"),
  [
    (dict(flops=float("nan")), "--flops=nan is not from"),
    (dict(flops=-1e21), "is not from 1e+06"),
    (dict(flops=1e300), "to 1e+40"),
    (dict(mfu=0.0), "--mfu=0 is"),
    (dict(mfu=40.0), "--mfu=40 is not above 0 and at most 1"),
    (dict(level=95.0), "--level=95"),
    (dict(n=0.5), "--n=0.5 is not from 1"),
    (dict(n=float("inf")), "--n=inf is not from 1"),
    (dict(n=1e300), "to 1.67e+20 parameters"),
    (dict(fitted=laws.Fitted(laws.Parametric(482, 2085, 2, 1e-12, 0.4))), "below one"),
    (dict(card="h1000"), "Did you mean 'h100'"),
    (dict(fitted=laws.Fitted(laws.Power(1e13, 0.1))), "says nothing of a budget"),
    (dict(fitted=laws.PUBLISHED["kaplan"], n=1e9), "no loss for a size"),
    (dict(fitted=laws.Fitted(laws.Parametric(1, 1, 1, 1e-9, 1e-200))), "overflow"),
    (dict(fitted=laws.Fitted(laws.Parametric(9, 1, 1, 1e250, 1e250))), "overflow"),
    (dict(fitted=fitted(covariance=np.full((5, 5), 1e308))), "give no law"),
  ],
)
def test_bad_numbers_are_one_clear_line(change, says):
  with pytest.raises(InputError) as error:
    plan.plan(**(dict(fitted=fitted(), flops=1e21) | change))
  assert says in str(error.value)


# ---- the command


def test_the_command_prints_and_writes_the_same(command, tmp_path):
  out, picture = tmp_path / "plan.json", tmp_path / "plan.png"
  status, text, _ = command(
    "plan", "--flops=1e21,1e22", "--cards=64", f"--out={out}", f"--plot={picture}"
  )
  assert status == 0
  found = json.loads(out.read_text())
  assert found["law"] == "epoch"
  first, second = found["plans"]
  assert first["n"]["low"] < first["n"]["value"] < first["n"]["high"]
  assert f"{first['loss']['value']:.3f}" in text
  assert f"{first['device_hours']:,.0f}" in text
  assert "days on 64" in text
  assert "95% intervals" in text
  assert "extrapolates" in text or second["d"]["value"] < 3e11
  assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_command_reads_a_law_file(command, tmp_path):
  path = tmp_path / "mine.json"
  laws.write(fitted(source="my models"), path)
  status, text, _ = command("plan", "--flops=1e21", f"--law={path}")
  assert status == 0
  assert "my models" in text
  assert "21.6" in text


@pytest.mark.parametrize(
  ("words", "says"),
  [
    (["plan", "--flops=many"], "--flops=many is no number"),
    (["plan", "--flops=,"], "is not 1 to 100 budgets"),
    (["plan", "--flops=1e21", "--law=chinchila-1"], "Did you mean 'chinchilla-1'"),
    (["plan", "--flops=1e21", "--law=no.json"], "no.json"),
    (["plan", "--flops=1e21", "--card=h10"], "Did you mean 'h100'"),
    (["plan", "--flops=1e21", "--cards=0"], "--cards=0"),
    (["plan", "--flops=1e21", "--n=x"], "--n=x is no number"),
    (["flops", "--model=llama2-7"], "Did you mean 'llama2-7b'"),
    (["flops", "--model=llama2-7b", "--context=0"], "--context=0"),
  ],
)
def test_the_command_refuses_in_one_line(command, words, says):
  status, text, error = command(*words)
  assert status == 2
  assert error.startswith("error: ")
  assert error.count("\n") == 1
  assert says in error
  assert not text


def test_the_command_counts_flops(command, tmp_path):
  status, text, _ = command("flops", "--model=llama2-7b", "--tokens=2e12")
  assert status == 0
  assert "6,738,149,376 weights" in text
  line = next(x for x in text.splitlines() if x.startswith("  6n "))
  assert float(line.split()[1]) == pytest.approx(6 * 6_738_149_376 * 2e12, rel=1e-3)
