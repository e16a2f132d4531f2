"""Calibration, paired intervals and tables, against definitions and brute force."""

import numpy as np
import pytest

from jaxpeft.evaluation.curves import calibration, paired, picture, scale, table
from jaxpeft.evaluation.strategies import chains, votes
from jaxpeft.evaluation.strategies.chains import Options
from tests.support import scripted

CONFIDENCE, CORRECT = [1, 0.8, 0.6, 0.4, 0.4], [1, 1, 0, 1, 0]
RATES = (0.4, 0.9, 0.3, 0.5, 0.6)


def test_auacc_of_the_fixture():
  assert calibration.auacc(CONFIDENCE, CORRECT) == pytest.approx(0.82, abs=1e-12)
  at = calibration.accuracy_at(CONFIDENCE, CORRECT)
  assert at == pytest.approx([1, 1, 2 / 3, 0.75, 0.6])
  assert at.mean() == pytest.approx(0.80333, abs=1e-5)


def test_auacc_does_not_depend_on_the_order_of_ties():
  rng = np.random.default_rng(0)
  confidence, correct = rng.integers(1, 5, 50) / 4, rng.random(50) < 0.5
  order = rng.permutation(50)
  found = calibration.auacc(confidence, correct)
  assert calibration.auacc(confidence[order], correct[order]) == pytest.approx(found)
  assert calibration.auacc(np.ones(50), correct) == pytest.approx(correct.mean())


def test_ece_against_its_definition():
  rng = np.random.default_rng(1)
  confidence, correct = rng.integers(0, 11, 200) / 10, rng.random(200) < 0.4
  total = 0.0
  for b in range(10):
    own = [i for i, x in enumerate(confidence) if min(round(x * 10), 9) == b]
    if own:
      gap = abs(confidence[own].mean() - correct[own].mean())
      total += len(own) / 200 * gap
  assert calibration.ece(confidence, correct) == pytest.approx(total)
  assert calibration.ece([1, 1], [1, 1]) == 0


def _chains(count=12, m=6, n=3):
  asked = scripted.problems(count)
  ask = scripted.Script(*RATES, by_key=True)
  return asked, chains.run(asked, ask, [1 + 2 * n] * m)


@pytest.mark.parametrize("over", ["all", "verified_first"])
@pytest.mark.parametrize(("m", "n"), [(1, 3), (4, 0), (4, 2), (6, 3)])
def test_a_cell_is_the_vote_of_each_choice(over, m, n):
  asked, found = _chains()
  ends = table.ends(asked, found, 3, "strict")
  order = table.choices(12, 6, draws=5, seed=3)
  cell = table.vote("x", ends, m, n, order, over)
  for d in range(5):
    picked = [[own[i] for i in order[d, p, :m]] for p, own in enumerate(found)]
    options = Options(vote_over=over)
    for p, one in enumerate(votes.of_chains(asked, picked, 1 + 2 * n, options)):
      cut = [x.cut(1 + 2 * n) for x in picked[p]]
      assert cell.right[d, p] == (one.text == "right")
      assert cell.confidence[d, p] == pytest.approx(one.confidence)
      assert cell.tokens[d, p] == sum(x.tokens for x in cut)
      assert cell.calls[d, p] == sum(x.calls for x in cut)


def test_texts_without_an_answer_lose_to_those_with_one():
  shape = (1, 3, 1)
  answer = np.array([-1, -1, 0]).reshape(shape)
  right = np.array([False, False, True]).reshape(shape)
  ones = np.ones(shape, int)
  none = np.zeros((1, 3, 0), bool)
  ends = table.Ends(answer, right, ones < 0, ones, ones, none, none)
  order = table.choices(1, 3, 4)
  cell = table.vote("x", ends, 3, 0, order)
  assert cell.right.all()
  assert cell.confidence == pytest.approx(1 / 3)
  ends = ends._replace(answer=-ones, right=ones < 0)
  cell = table.vote("x", ends, 3, 0, order)
  assert not cell.right.any()
  assert not cell.confidence.any()


def test_orders_are_permutations():
  order = table.choices(3, 7, 4)
  assert (np.sort(order, -1) == np.arange(7)).all()
  assert len({tuple(x) for x in order.reshape(-1, 7)}) == 12


def _cell(name, tokens, right):
  right = np.array([right], float)
  flat = np.full(right.shape, float(tokens))
  return table.Cell(name, 1, 0, right, right, flat, flat)


def test_differences_at_equal_tokens():
  rng = np.random.default_rng(2)
  a, b = rng.random(100) < 0.3, rng.random(100) < 0.6
  others = [_cell("vote", 10, a), _cell("vote", 40, b)]
  at, beyond = paired.at_tokens(others, 20)  # half way from 10 to 40 in logarithms
  assert at == pytest.approx((a + b * 1.0) / 2)
  assert not beyond
  assert paired.at_tokens(others, 5)[0] == pytest.approx(a * 1.0)
  at, beyond = paired.at_tokens(others, 80)
  assert at == pytest.approx(b * 1.0)
  assert beyond
  own = rng.random(100) < 0.8
  found = paired.difference(_cell("sets", 20, own), others)
  gap = own - (a + b * 1.0) / 2
  error = gap.std() / 10
  assert found.value == pytest.approx(gap.mean())
  assert found.low == pytest.approx(gap.mean() - 1.96 * error, abs=0.2 * error)
  assert found.high == pytest.approx(gap.mean() + 1.96 * error, abs=0.2 * error)


def test_the_interval_is_that_of_scipy():
  from scipy import stats

  values = np.random.default_rng(3).random(60)
  theirs = stats.bootstrap(
    (values,), np.mean, n_resamples=10_000, method="percentile", rng=0
  ).confidence_interval
  assert paired.interval(values) == pytest.approx(tuple(theirs), abs=0.003)


def test_the_envelope_has_only_what_nothing_cheaper_reaches():
  rows = [
    dict(tokens=t, accuracy=a) for t, a in ((1, 0.2), (2, 0.1), (2, 0.5), (3, 0.5))
  ]
  assert table.envelope(rows) == [rows[0], rows[2]]


def test_a_scale_test_of_a_script(tmp_path):
  asked, ask = scripted.problems(40), scripted.Script(*RATES, by_key=True)
  sizes = scale.Scale(4, 3, 8, ablations=True)
  result = scale.run(asked, ask, sizes, Options())
  rows = {(x["strategy"], x["m"], x["n"]): x for x in result["rows"]}
  assert rows["sets", 4, 3]["accuracy"] > rows["self_consistency", 4, 0]["accuracy"]
  assert rows["self_refine", 1, 3]["tokens"] == pytest.approx(
    rows["sets", 4, 3]["tokens"] / 4, rel=0.2
  )
  assert rows["best_of_n", 8, 1]["tokens"] == 8 * 5
  assert "minus_vote" in rows["sets_no_verify", 4, 3]
  text = scale.text(result)
  assert "compute-optimal" in text
  assert len(text.splitlines()) > len(rows)
  picture.draw(result, tmp_path / "plot.png", "a script")
  assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_steps_of_the_grid():
  assert scale.steps(1) == [1]
  assert scale.steps(6) == [1, 2, 4, 6]


def test_a_share_at_a_border_is_in_the_upper_bin():
  # 0.57 * 100 is 56.99999999999999; with 0.575 in one bin, the errors cancel.
  assert calibration.ece([0.57, 0.575], [1, 0], bins=100) == pytest.approx(0.0725)
