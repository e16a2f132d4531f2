"""Laws give the numbers of their papers, and their optimum is the best there is."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from scipy import optimize, special

from jaxpeft.errors import InputError
from jaxpeft.scaling import laws
from jaxpeft.scaling.laws import files, published, width_depth

GOPHER = 5.76e23  # FLOPs
BUDGETS = (1e18, 1e21, GOPHER, 1e25)
PARAMETRIC = (published.EPOCH, published.HOFFMANN, published.HOFFMANN_ROUNDED)


def best(loss, low=1e3, high=1e16):
  """The size with the smallest loss, by SciPy."""
  found = optimize.minimize_scalar(
    lambda x: loss(np.exp(x)), bounds=np.log((low, high)), method="bounded",
    options=dict(xatol=1e-9),
  )  # fmt: skip
  return np.exp(found.x), found.fun


def test_constants_are_those_that_the_papers_print():
  def of(name):
    return tuple(files.numbers(laws.PUBLISHED[name].law).values())

  assert of("epoch") == (482.01, 2085.43, 1.8172, 0.3478, 0.3658)
  assert of("chinchilla-3-rounded") == (406.4, 410.7, 1.69, 0.34, 0.28)
  logs = (6.0073404, 6.0179186, 0.5267228)
  assert of("chinchilla-3") == pytest.approx((*np.exp(logs), 0.33917084, 0.2849083))
  assert of("chinchilla-3")[3:] == (0.33917084, 0.2849083)
  assert of("pearce-chinchilla") == (406.4, 410.7, 1.6934, 0.3392, 0.2849, 47_491)
  assert of("pearce-epoch") == (*of("epoch"), 47_491)
  assert of("kaplan-steps") == (6.5e13, 2.1e3, 0.077, 0.76, 2.1e8, 0.21)
  assert dataclasses.astuple(published.KAPLAN_ND) == (6.4e13, 1.8e13, 0.076, 0.103)
  table_2 = [
    ((0.50, 0.488, 0.502), (0.50, 0.501, 0.512)),
    ((0.49, 0.462, 0.534), (0.51, 0.483, 0.529)),
    ((0.46, 0.454, 0.455), (0.54, 0.542, 0.543)),
  ]
  assert list(published.EXPONENTS.values()) == table_2


# ---- one variable


def test_kaplans_powers_give_the_papers_losses():
  assert published.KAPLAN_N.loss(1e9) == pytest.approx(2.3756, abs=5e-5)
  assert published.KAPLAN_N.loss(1.5e9) == pytest.approx(2.30355, abs=5e-6)
  assert published.KAPLAN_D.loss(22e9) == pytest.approx(2.09917, abs=5e-6)
  # where L(C) and L(C_min) start, in PF-days; and what ten times the budget is worth
  day = 1e15 * 86_400
  for law, scale, alpha in (
    (published.KAPLAN_C, 1.6e7, 0.057), (published.KAPLAN_C_MIN, 3.1e8, 0.05),
  ):  # fmt: skip
    assert law.loss(scale * day) == pytest.approx(1)
    assert law.loss(1e19) / law.loss(1e20) == pytest.approx(10**alpha)


def test_a_power_is_inverted():
  law = published.KAPLAN_N
  assert law.inverse(law.loss(3e8)) == pytest.approx(3e8)


# ---- Kaplan's joint laws


def test_kaplans_joint_law_has_the_papers_limits_and_rule_against_overfitting():
  law = published.KAPLAN_ND
  n, d = 1e9, 1e10
  assert law.loss(n, 1e40) == pytest.approx((6.4e13 / n) ** 0.076)
  assert law.loss(1e60, d) == pytest.approx((1.8e13 / d) ** 0.103, rel=1e-3)
  # section 4.2: below 2 % with D of about 5e3 N^0.74 tokens
  assert law.tokens(n) == pytest.approx(5e3 * n**0.74, rel=0.1)
  assert law.overfitting(n, law.tokens(n)) == pytest.approx(0.02)
  assert law.tokens(8 * n) / law.tokens(n) == pytest.approx(8**0.738, rel=1e-3)


def test_steps_and_tokens_trade_as_mccandlish_says():
  batch, n, steps, size = published.KAPLAN_BATCH, 3e8, 2e4, 3e5
  law = published.KAPLAN_NS
  loss = law.trained(n, steps, size)
  least = batch.least_steps(steps, size, loss)
  assert loss == pytest.approx((6.5e13 / n) ** 0.077 + (2.1e3 / least) ** 0.76)
  # (S / S_min - 1) (E / E_min - 1) = 1, with E_min = B_crit S_min
  critical = 2.1e8 / loss ** (1 / 0.21)
  tokens = steps * size / (critical * least)
  assert (steps / least - 1) * (tokens - 1) == pytest.approx(1)
  flops = 6 * n * steps * size
  assert batch.least_flops(flops, size, loss) == pytest.approx(6 * n * critical * least)
  # huge batches need S_min steps; without end of steps only the size limits
  assert law.trained(n, steps, 1e30) == pytest.approx(law.loss(n, steps))
  assert law.trained(n, 1e30, size) == pytest.approx((6.5e13 / n) ** 0.077)
  many = law.trained(n, [[1e3], [1e4]], [1e4, 1e5, 1e6])
  assert many.shape == (2, 3)
  assert (np.diff(many, axis=0) < 0).all()
  assert (np.diff(many, axis=1) < 0).all()


@pytest.mark.parametrize("c", [1e18, 1e21])
def test_kaplans_optimum_of_steps_is_the_best(c):
  law = published.KAPLAN_NS

  def loss(n):  # the loss L with S_min = C_min / (6 N B_crit(L))
    def gap(x):
      return law.loss(n, c / (6 * n * law.batch.tokens(x))) - x

    return optimize.brentq(gap, 1e-3, 1e6)

  n, lowest = best(loss, 1e5, 1e13)
  assert law.optimum(c)[0] == pytest.approx(n, rel=1e-3)
  assert law.frontier(c) == pytest.approx(lowest)
  assert 6 * np.prod(law.optimum(c)) == pytest.approx(c)
  grown = law.optimum(10 * c)[0] / law.optimum(c)[0]
  assert np.log10(grown) == pytest.approx(law.a)
  assert law.a + law.b == 1


def test_kaplans_allocation_agrees_with_the_papers_batch_and_steps():
  law = laws.PUBLISHED["kaplan"].law
  for days in (1e-3, 1.0, 100.0):
    n, d = law.optimum(days * laws.PF_DAY)
    assert n == pytest.approx(1.3e9 * days**0.73)
    # table 6: B_crit = 2e6 C^0.24 and S_min = 5.4e3 C^0.03, so D = B_crit S_min
    assert d == pytest.approx(2e6 * days**0.24 * 5.4e3 * days**0.03, rel=0.03)
    assert law.frontier(days * laws.PF_DAY) == pytest.approx((3.1e8 / days) ** 0.05)
  fixed = laws.PUBLISHED["kaplan-fixed-batch"].law
  assert fixed.optimum(laws.PF_DAY)[0] == pytest.approx(1.6e9)
  assert (fixed.a, fixed.b) == pytest.approx((0.88, 0.12))


# ---- Chinchilla


@pytest.mark.parametrize("law", PARAMETRIC)
def test_the_optimum_of_the_parametric_law_is_the_best(law):
  for c in BUDGETS:
    n, lowest = best(lambda n, c=c: law.loss(n, c / 6 / n))
    assert law.optimum(c)[0] == pytest.approx(n, rel=1e-4)
    assert law.optimum(c)[1] == pytest.approx(c / 6 / n, rel=1e-4)
    assert law.frontier(c) == pytest.approx(lowest)
  small, large = (np.asarray(law.optimum(c)) for c in (1e20, 1e22))
  assert np.log10(large / small) / 2 == pytest.approx([law.a, law.b])
  assert law.a + law.b == pytest.approx(1)


def test_exponents_of_all_three_approaches_are_those_of_table_2():
  found = {
    approach: laws.PUBLISHED[f"chinchilla-{approach}"].law for approach in (1, 2, 3)
  }
  for approach, law in found.items():
    for mine, (value, _, _) in zip((law.a, law.b), published.EXPONENTS[approach],
                                   strict=True):  # fmt: skip
      assert round(mine, 2) == value, approach
  (_, low, high), _ = published.EXPONENTS[2]
  assert low < found[2].a < high
  for ends in published.EXPONENTS.values():
    assert sum(value for value, _, _ in ends) == pytest.approx(1)
    assert all(low < high and value - high < 0.008 for value, low, high in ends)


@pytest.mark.parametrize(
  ("name", "table"), [("1", published.TABLE_3), ("2", published.TABLE_A3)]
)
def test_the_rows_of_tables_3_and_a3_lie_on_the_law(name, table):
  law = laws.PUBLISHED[f"chinchilla-{name}"].law
  for n, c, d in table:
    close = 0.06 if n == 67e9 else 0.01  # that row is rounded to two digits
    best_n, best_d = law.optimum(c)
    assert best_n == pytest.approx(n, rel=min(close, 0.05))
    assert best_d == pytest.approx(d, rel=close)


def test_table_3_is_that_of_the_paper():
  # 6 N D is C: a wrong digit anywhere would show, except in the rows with two digits
  n, c, d = published.TABLE_3.T
  gap = np.abs(6 * n * d / c - 1)
  assert gap[3] < 0.05
  assert np.delete(gap, 3).max() < 0.013
  assert list(n) == [4e8, 1e9, 1e10, 67e9, 175e9, 280e9, 520e9, 1e12, 1e13]


@pytest.mark.parametrize(
  ("law", "ratios", "gopher"),
  [
    (published.EPOCH, (21.59, 18.38, 17.10), 7.23e10),
    (published.HOFFMANN, (33.9, 58.9, 75.5), 4.04e10),
    (published.HOFFMANN_ROUNDED, (50.0, 92.6, 122.0), 3.22e10),
  ],
)
def test_tokens_per_parameter(law, ratios, gopher):
  for c, ratio in zip((1e21, GOPHER, 1e25), ratios, strict=True):
    n, d = law.optimum(c)
    assert d / n == pytest.approx(ratio, rel=5e-3)
  assert law.optimum(GOPHER)[0] == pytest.approx(gopher, rel=5e-3)


@pytest.mark.parametrize(
  ("law", "f"),
  [
    (published.EPOCH, 1.022843e-3),  # the optimum has 1.018274e-3; rounding costs
    (published.HOFFMANN, 1.231163e-3),
    (published.HOFFMANN_ROUNDED, 4.121009e-3),
  ],
)
def test_published_numbers_fit_chinchillas_points_as_well_as_they_should(
  law, f, data_dir
):
  text = (data_dir / "scaling" / "chinchilla_svg_extracted_data.csv").read_text()
  rows = list(csv.DictReader(text.splitlines()))
  n, c, loss = (
    np.array([float(row[k]) for row in rows])
    for k in ("Model Size", "Training FLOP", "loss")
  )
  low = np.argsort(loss)[:240]
  span = laws.PUBLISHED["epoch"].span
  for key, values in (("n", n), ("d", c / 6 / n), ("c", c)):
    ends = values[low].min(), values[low].max()
    assert span[key] == pytest.approx(ends, rel=0.02)
  gap = np.log(law.loss(n, c / 6 / n)) - np.log(loss)
  assert special.huber(1e-3, gap[low]).sum() == pytest.approx(f, rel=1e-6)


# ---- Pearce and Song


@pytest.mark.parametrize(
  ("name", "body", "total"),
  [("pearce-chinchilla", 0.739, 0.458), ("pearce-epoch", 0.781, 0.515)],
)
def test_pearce_and_song_see_kaplans_exponent_without_embeddings(name, body, total):
  found = laws.observed_exponents(laws.PUBLISHED[name].law)
  assert [round(x, 3) for x in found] == [body, total]


def test_without_embeddings_the_exponent_has_its_limits_and_a_peak():
  for name, small, large in (
    ("pearce-epoch", 0.759, 0.513), ("pearce-chinchilla", 0.716, 0.456),
  ):  # fmt: skip
    law = laws.PUBLISHED[name].law
    assert law.exponent(1e-3) == pytest.approx(small, abs=6e-4)
    assert law.exponent(1e20) == pytest.approx(large, abs=6e-4)
    assert 0.95 < law.exponent((law.gamma / 3) ** 1.5) < 1
    n = np.geomspace(1e2, 1e12, 9)
    step = 1e-4
    slope = (
      2 * step / np.log(law.budget(n * np.exp(step)) / law.budget(n * np.exp(-step)))
    )
    assert law.exponent(n) == pytest.approx(slope, rel=1e-5)


def test_without_embeddings_the_optimum_is_the_best():
  law = laws.PUBLISHED["pearce-epoch"].law
  assert law.gamma == pytest.approx(32_000 * (39.2 / 12) ** (1 / 3), rel=1e-3)
  assert law.total(1e9) == 1e9 + law.gamma * 1e3
  budgets = np.array([1e13, 1e18, 1e23])
  n, d = law.optimum(budgets)
  for i, c in enumerate(budgets):
    other, lowest = best(lambda n, c=c: law.loss(n, c / 6 / n), 1.0)
    assert n[i] == pytest.approx(other, rel=1e-3)
    assert law.frontier(c) == pytest.approx(lowest)
  assert 6 * n * d == pytest.approx(budgets)


# ---- Gemstones


def test_gemstones_laws_predict_what_the_authors_code_predicts():
  width, depth = np.array([256.0, 1024, 3072]), np.array([80.0, 28, 12])
  n = width_depth.parameters(width, depth)
  assert list(n) == [104_440_064, 543_482_880, 2_007_837_696]
  d = np.array([100e9, 350e9, 200e9])
  law = laws.PUBLISHED["gemstones-width-depth"].law
  expected = [3.17449854, 2.70843252, 2.56245583]
  assert law.loss(width, depth, n, d) == pytest.approx(expected, rel=1e-8)
  law = laws.PUBLISHED["gemstones"].law
  assert law.loss(n, d) == pytest.approx([3.16931557, 2.76136978, 2.5883814], rel=1e-8)
  assert law.a == pytest.approx(0.7088, abs=5e-5)


def test_the_best_shape_is_the_best_of_its_grid_and_its_neighbours_are_worse():
  law = laws.PUBLISHED["gemstones-width-depth"].law
  shape = law.shape(1e21)
  assert shape.width % 128 == 0
  assert 6 * shape.n * shape.d == pytest.approx(1e21)
  lowest = law.frontier(1e21)
  for width in (shape.width / 2, shape.width, shape.width * 2):
    for depth in (shape.depth / 1.5, shape.depth, shape.depth * 1.5):
      n = width_depth.parameters(width, depth)
      assert law.loss(width, depth, n, 1e21 / 6 / n) >= lowest
  n, d = law.optimum(np.array([1e20, 1e22]))
  assert n[0] < n[1]
  assert d.shape == (2,)
  # without the term of N, only width, depth and tokens count
  three = dataclasses.replace(law, c_n=-np.inf, a_n=0.0)
  assert three.loss(512, 12, 1.0, 1e10) == three.loss(512, 12, 1e9, 1e10)


# ---- fine-tuning


def test_the_law_of_fine_tuning_multiplies():
  law = laws.Multiplicative(A=2e3, E=0.6, alpha=0.36, beta=0.08)
  gain = law.loss(1e9, 1e5) - law.E
  assert law.loss(2e9, 1e5) - law.E == pytest.approx(gain * 2**-0.36)
  assert law.loss(1e9, 2e5) - law.E == pytest.approx(gain * 2**-0.08)
  # the mixed second difference of a product of powers is a product
  both = law.loss(2e9, 2e5) - law.E
  assert both == pytest.approx(gain * 2**-0.36 * 2**-0.08)
  assert law.data(1e9, law.loss(1e9, 3e4)) == pytest.approx(3e4)


def test_two_methods_cross_where_their_losses_are_equal():
  first = laws.Multiplicative(A=50.0, E=0.6, alpha=0.2, beta=0.15)
  second = laws.Multiplicative(A=20.0, E=0.6, alpha=0.25, beta=0.05)
  for x in (1e8, 1e10):
    d = laws.crossing(first, second, x)
    assert first.loss(x, d) == pytest.approx(second.loss(x, d))
    assert first.loss(x, d / 10) > second.loss(x, d / 10)
  with pytest.raises(InputError, match="floors"):
    laws.crossing(first, dataclasses.replace(second, E=0.5), 1e8)


# ---- files


@pytest.mark.parametrize("name", laws.PUBLISHED)
def test_a_law_survives_its_file(name, tmp_path):
  fitted = laws.PUBLISHED[name]
  laws.write(fitted, tmp_path / "law.json")
  again = laws.read(tmp_path / "law.json")
  assert again.law == fitted.law
  assert (again.source, again.counts) == (fitted.source, fitted.counts)
  assert again.span == fitted.span
  assert (again.covariance is None) == (fitted.covariance is None)
  assert fitted.law.frontier(1e21) == again.law.frontier(1e21)


def test_samples_and_covariance_survive_and_are_drawn_from(tmp_path):
  law = laws.Parametric(400.0, 2000.0, 1.8, 0.34, 0.37)
  rng = np.random.default_rng(0)
  samples = {k: v * rng.uniform(0.9, 1.1, 50) for k, v in files.numbers(law).items()}
  samples["alpha"][:3] = -1.0  # no law
  laws.write(laws.Fitted(law, samples=samples), tmp_path / "a.json")
  drawn = laws.read(tmp_path / "a.json").draws()
  assert drawn.A == pytest.approx(samples["A"][3:])
  assert drawn.optimum(1e21)[0].shape == (47,)
  spread = np.diag([0.04, 0.09, 1e-4, 1e-4, 4e-4])
  spread[0, 3] = spread[3, 0] = 0.9 * 0.2 * 0.01
  laws.write(laws.Fitted(law, covariance=spread), tmp_path / "b.json")
  drawn = laws.read(tmp_path / "b.json").draws(20_000)
  found = [np.log(drawn.A), np.log(drawn.B), np.log(drawn.E), drawn.alpha, drawn.beta]
  assert np.cov(found) == pytest.approx(spread, abs=3e-3)
  assert np.corrcoef(found[0], found[3])[0, 1] == pytest.approx(0.9, abs=0.01)
  assert np.mean(found[1]) == pytest.approx(np.log(2000), abs=0.01)
  assert laws.Fitted(law).draws() is None


def test_epochs_covariance_gives_the_published_standard_errors():
  drawn = laws.PUBLISHED["epoch"].draws(20_000)
  errors = dict(E=0.0257, alpha=0.0154, beta=0.0206, a=0.020)
  for name, error in errors.items():
    assert np.std(getattr(drawn, name)) == pytest.approx(error, rel=0.1), name
  # A and B are skewed: their published 95 % intervals are compared in the logarithm
  for name, (low, high) in dict(A=(285, 744), B=(1042, 5810)).items():
    found = np.quantile(getattr(drawn, name), [0.025, 0.975])
    assert np.log(found[1] / found[0]) == pytest.approx(np.log(high / low), rel=0.1)
  # the published 80 % interval of a is 0.051 wide
  assert np.diff(np.quantile(drawn.a, [0.1, 0.9])) == pytest.approx(0.051, rel=0.1)


ORDER = ("A", "B", "E", "alpha", "beta")


def test_the_law_inside_a_report_is_found():
  assert laws.from_json({"approach": 3, "law": GOOD}).law.A == 400.0


GOOD = dict(law="parametric", A=400.0, B=2000.0, E=1.8, alpha=0.34, beta=0.37)


@pytest.mark.parametrize(
  ("change", "says"),
  [
    (dict(law="parametrik"), "Did you mean 'parametric'"),
    (dict(law=3), 'has no "law"'),
    (dict(A=None), "A is 'None', no number"),
    (dict(A=True), "no number"),
    (dict(A="4"), "no number"),
    (dict(A=-1), "A is -1, but must be positive"),
    (dict(alpha=0), "alpha is 0, but must be positive"),
    (dict(A=10**400), "A is too large"),
    (dict(gamma=2), "unknown key in law: 'gamma'"),
    (dict(beat=1), "Did you mean 'beta'"),
    (dict(counts="body"), "unknown counts"),
    (dict(source=5), "source is '5', no text"),
    (dict(span=[1]), "span must be like"),
    (dict(span={"n": [2, 1]}), "span of n is 2 to 1"),
    (dict(samples={"A": [1, 2]}), "samples need lists of A, B"),
    (dict(samples={k: [1] for k in ORDER}), "one length"),
    (
      dict(samples={k: ["x", 1] for k in ORDER}),
      "numbers",
    ),
    (dict(covariance=[[1]]), "symmetric, 5 x 5"),
    (dict(covariance=[[1], [1, 2]]), "must be a table of numbers"),
    (dict(covariance=(-np.eye(5)).tolist()), "negative variance"),
    (dict(law="allocation"), "unknown key"),
  ],
)
def test_a_bad_file_is_one_clear_line(change, says):
  with pytest.raises(InputError) as error:
    laws.from_json(GOOD | change)
  assert says in str(error.value)
  assert len(str(error.value)) < 400


def test_files_that_are_no_law(tmp_path):
  path = tmp_path / "law.json"
  for text, says in (
    ("[1]", "has no"), ("{", "no JSON"), ("[" * 100_000, "no JSON"),
    ('{"law": "parametric", "A": NaN, "B": 1, "E": 1, "alpha": 1, "beta": 1}', "A is"),
    (json.dumps({k: v for k, v in GOOD.items() if k != "E"}), "has no E"),
    ('{"law": "allocation", "scale": 1, "a": 1.5}', "must be below 1"),
    ('{"law": "allocation", "scale": 1, "a": 0.5, "best.scale": 2}', "no best.alpha"),
    ('{"law": "without-embedding", "law.A": 1}', "has no law."),
  ):  # fmt: skip
    path.write_text(text)
    with pytest.raises(InputError, match=says):
      laws.read(path)
