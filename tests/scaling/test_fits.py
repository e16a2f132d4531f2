"""Points from files, and approaches 1 and 2 against published exponents."""

import json

import numpy as np
import pytest
from scipy import spatial

from jaxpeft.errors import InputError
from jaxpeft.scaling import frontier, isoflop, points, results

# Porian et al. 2024: the published exponent of each stage, RefinedWeb and OpenWebText2
PORIAN = {
  "base/long/kaplan/kaplan/train": (0.835, 0.864),
  "base/long/kaplan/standard/val": (0.706, 0.699),
  "base/short/kaplan/standard/val": (0.602, 0.603),
  "base/short/chinchilla/standard/val": (0.571, 0.574),
  "tuned/short/const/standard/val": (0.497, 0.518),
}
ATTENTION = {
  "base/long/kaplan/attention/train": 0.717,
  "base/short/kaplan/attention/train": 0.622,
  "base/short/chinchilla/attention/train": 0.577,
  "tuned/short/const/attention/train": 0.505,
}


@pytest.fixture(scope="session")
def porian(data_dir):
  return points.read(data_dir / "scaling" / "porian_isoflop.csv")


@pytest.fixture(scope="session")
def epoch(data_dir):
  """The 240 points that Besiroglu et al. fit."""
  path = data_dir / "scaling" / "chinchilla_svg_extracted_data.csv"
  return points.read(path).without_highest(5)


def law_points(alpha=0.34, beta=0.28, count=12, noise=0.0, seed=0):
  """IsoFLOP points of a law, 5 budgets; the best N grows as C^(beta / (alpha+beta))."""
  c = np.repeat(np.geomspace(1e18, 1e22, 5), count)
  best = 1e8 * (c / 1e18) ** (beta / (alpha + beta))
  n = best * np.tile(np.geomspace(0.1, 10, count), 5)
  d = c / 6 / n
  loss = 1.7 + 400 / n**alpha
  loss += 400 * alpha / beta * best**-alpha * (d / (c / 6 / best)) ** -beta
  loss *= np.exp(noise * np.random.default_rng(seed).standard_normal(len(loss)))
  return points.make(n=n, d=d, loss=loss)


@pytest.mark.parametrize("stage", PORIAN)
def test_isoflop_exponents_are_those_of_porian(porian, stage):
  for data, published in zip(("rw", "owt2"), PORIAN[stage], strict=True):
    found = isoflop.fit(porian.where("config", f"{data}/{stage}")).frontier
    assert abs(found.a - published) < 0.03
    assert abs(found.a + found.b - 1) < 1e-3


@pytest.mark.parametrize("stage", ATTENTION)
def test_isoflop_exponents_with_attention_flops(porian, stage):
  found = isoflop.fit(porian.where("config", f"rw/{stage}")).frontier
  assert abs(found.a - ATTENTION[stage]) < 0.05


def test_isoflop_finds_the_laws_exponent_and_its_interval():
  found = isoflop.fit(law_points())
  assert len(found.parabolas) == 5
  assert abs(found.frontier.a - 0.28 / 0.62) < 2e-3
  noisy = isoflop.fit(law_points(noise=0.002))
  drawn = isoflop.bootstrap(noisy, 200)
  low, high = np.percentile(drawn[:, 0], [0.5, 99.5])
  assert low < 0.28 / 0.62 < high
  assert 0.002 < drawn[:, 0].std() < 0.05


def test_budgets_of_chinchilla_are_found(epoch):
  """Hoffmann's nine budgets; facts: a is .514, and single budgets are noisy."""
  named = isoflop.fit(epoch, (6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21))
  assert len(named.parabolas) == 9
  for found in (named, isoflop.fit(epoch)):
    assert abs(found.frontier.a - 0.514) < 0.05


def test_a_budget_whose_best_model_is_at_an_end_is_left_out():
  n = np.geomspace(1e7, 1e9, 7)
  found = isoflop.parabola(1e18, n, 1e18 / 6 / n, 3 + np.log(n / 1e6))
  assert found.best is None
  assert "smallest" in found.why


def test_curves_give_losses_at_budgets_between_their_points():
  """Ten curves of a law with a known frontier, at steps that fit no budget."""
  n = np.repeat(np.geomspace(1e7, 1e9, 10), 30)
  d = np.tile(np.geomspace(1e8, 1e11, 30), 10)
  loss = 1.7 + 400 / n**0.34 + 410 / d**0.28
  given = points.make(n=n, d=d, loss=loss, run=np.repeat(np.arange(10), 30))
  found = isoflop.fit(given).frontier
  assert abs(found.a - 0.28 / 0.62) < 0.01
  found = frontier.envelope(given)
  assert abs(found.a - 0.28 / 0.62) < 0.05  # ten sizes are steps of the envelope
  assert abs(frontier.hull(given).a - 0.28 / 0.62) < 0.06


def test_the_hull_is_scipys_without_what_raises_the_loss():
  """Corners of scipy's hull of the points and a vantage point; then the filter."""
  raised = 0
  for seed in range(20):
    rng = np.random.default_rng(seed)
    c = np.exp(rng.uniform(40, 50, 60))
    loss = np.exp(rng.uniform(0.5, 1.5, 60)) + 20 / np.log(c)
    cloud = np.log(np.stack([c, loss], 1))
    vantage = np.log([2 * c.max(), 2 * loss.max()])
    corners = spatial.ConvexHull(np.vstack([vantage, cloud])).vertices
    corners = corners[corners > 0] - 1
    corners = corners[np.argsort(c[corners])]
    falls = np.append(True, np.diff(loss[corners]) < 0)
    raised += (~falls).sum()
    np.testing.assert_array_equal(frontier.hull_rows(c, loss), corners[falls])
  assert raised  # otherwise the filter is not tested


def test_the_hull_of_chinchillas_points(epoch):
  found = frontier.hull(epoch)
  assert len(found.c) == 10
  assert abs(found.a - 0.515) < 1e-3


def test_a_bootstrap_of_the_hull_draws_whole_curves():
  n = np.repeat(np.geomspace(1e7, 1e9, 8), 20)
  d = np.tile(np.geomspace(1e8, 1e11, 20), 8)
  loss = 1.7 + 400 / n**0.34 + 410 / d**0.28
  given = points.make(n=n, d=d, loss=loss, run=np.repeat(np.arange(8), 20))
  drawn = frontier.bootstrap(given, "hull", 50)
  assert len(drawn) == 50
  assert 0.005 < drawn[:, 0].std() < 0.2


def write(path, rows, header="n,d,loss"):
  path.write_text("\n".join([header, *rows]) + "\n")
  return path


GOOD = [f"{n}e7,{d}e9,{3 - 0.1 * n - 0.05 * d}" for n in (1, 2, 4) for d in (1, 2, 4)]


@pytest.mark.parametrize(
  ("rows", "header", "words"),
  [
    (GOOD, "size,tok,val", ["loss", "two of n", "size, tok, val", "--columns="]),
    ([*GOOD, "1e7,1e9,-2"], "n,d,loss", ["line 11: loss is '-2'", "positive"]),
    ([*GOOD, "1e7,1e9,nan"], "n,d,loss", ["line 11: loss is 'nan'", "positive"]),
    ([*GOOD, "1e7,,3"], "n,d,loss", ["line 11: d is ''"]),
    ([*GOOD, "1e7,inf,3"], "n,d,loss", ["line 11: d is 'inf'"]),
    (GOOD[:3], "n,d,loss", ["3 points", "at least 6"]),
    ([], "n,d,loss", ["0 points"]),
  ],
)
def test_a_bad_table_is_one_clear_line(tmp_path, rows, header, words):
  with pytest.raises(InputError) as e:
    points.read(write(tmp_path / "bad.csv", rows, header))
  for word in words:
    assert word in str(e.value)


@pytest.mark.parametrize(
  "text", ["", "[1]\n", '{"n": 1', "\0\1", '{"n": ' + "[" * 9999]
)
def test_what_is_no_table_is_refused(tmp_path, text):
  path = tmp_path / "bad.jsonl"
  path.write_text(text)
  with pytest.raises(InputError, match=r"bad\.jsonl"):
    points.read(path)


def test_two_budgets_are_too_few():
  given = law_points().take(np.arange(24))
  for approach in (1, 2):
    with pytest.raises(InputError, match=r"at least 3 budgets|corners"):
      results.run(given.take(given.c < 1e30), approach)


def test_columns_can_be_named_and_are_otherwise_known(tmp_path):
  path = write(tmp_path / "own.csv", GOOD, "Model Size,Training Tokens,val")
  found = points.read(path, "loss=val")
  np.testing.assert_allclose(found.c, 6 * found.n * found.d)
  with pytest.raises(InputError, match="Did you mean 'val'"):
    points.read(path, "loss=vall")
  with pytest.raises(InputError, match="Did you mean 'loss'"):
    points.read(path, "los=val")


def test_gemstones_files_are_read_and_counted_their_way(tmp_path):
  """Parameters and FLOPs of the authors' functions, written out for one shape."""
  width, depth, tokens, vocabulary = 1024, 28, 2_000_683_008, 50_304
  row = {"run_name": "PyGemma-1024x28", "params_active_precise": 543_482_880}
  row |= {"width": width, "depth": depth, "tokens": tokens, "final_loss": 4.04}
  lines = [row | {"step": 477 * i, "tokens": tokens * max(i, 1)} for i in range(8)]
  path = tmp_path / "wandb.jsonl"
  path.write_text("\n".join(map(json.dumps, lines)))
  found = points.read(path)
  assert len(found) == 7  # not the one of step 0
  heads = width / 128
  attention = 2 * 2 * heads * width * 128 + 3.5 * 1.5 * heads * 128
  scores = 2048 * heads * (128 + 3 + 2 * 128)
  out, feed = 2 * width * 128 * heads, 24 * width**2 + 40 * width + 2 * width
  ends = 7 * width + 2 * width * vocabulary
  forward = depth * (attention + scores + out + feed + 14 * width) + ends
  backward = depth * (2 * attention + 2.5 * scores + 2 * out)
  backward += 2 * (depth * (feed + 14 * width) + ends)
  np.testing.assert_allclose(found.c[0], (forward + backward) * tokens, rtol=1e-12)
  body = depth * (2 * width * 128 * heads + 128 * heads * width + 12 * width**2)
  body += depth * 2 * width + width
  assert found.without_embeddings(2).n[0] == body
  assert found.without_embeddings(1).n[0] == body + vocabulary * width
  with pytest.raises(InputError, match="vocabulary"):
    found.without_embeddings(2, 10**9)


def test_subsets():
  given = points.make(
    n=np.ones(8),
    d=np.ones(8),
    loss=np.arange(1.0, 9),
    other={"x": np.array(list("aabbccdd"))},
  )
  np.testing.assert_array_equal(given.where("x", "b").loss, [3, 4])
  np.testing.assert_array_equal(given.without_highest(2).loss, np.arange(1.0, 7))
  with pytest.raises(InputError, match="unknown column 'y'"):
    given.where("y", "b")
  with pytest.raises(InputError, match="unknown value of x 'e'"):
    given.where("x", "e")
  with pytest.raises(InputError, match="at least 6 must stay"):
    given.without_highest(3)
