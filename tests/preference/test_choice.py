"""Choice models: their formulas, fits, and when a fit exists."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from scipy.sparse import csgraph

from jaxpeft import preference
from jaxpeft.errors import InputError
from jaxpeft.preference import existence, simulation, uncertainty
from tests.support import choices as definitions

MODELS = dict(
  bradley_terry=(preference.BRADLEY_TERRY, None),
  thurstone=(preference.THURSTONE, None),
  davidson=(preference.DAVIDSON, 0.7),
  rao_kupper=(preference.RAO_KUPPER, 0.5),
  glenn_david=(preference.GLENN_DAVID, 0.6),
)
TRUE = np.array([0.9, 0.4, 0.1, -0.3, -1.1])
# choix' test case "8-random".
RANDOM = [
  (7, 3), (2, 0), (5, 2), (4, 2), (2, 1), (4, 5), (6, 3), (5, 4), (7, 0), (2, 3),
  (4, 0), (0, 4), (6, 5), (3, 2), (3, 4), (3, 4), (5, 2), (7, 3), (7, 6), (6, 5),
]  # fmt: skip


def shown(count, places=2, items=5, seed=0):
  """int[count, places], random distinct items."""
  return np.random.default_rng(seed).random((count, items)).argsort(1)[:, :places]


def simulated(name, count=900, seed=0):
  """Choices of a model in `MODELS`."""
  model, tie = MODELS[name]
  key = jax.random.key(seed)
  return preference.simulate(model, TRUE, shown(count, seed=seed), key, tie)


@functools.cache
def fit_of(name):
  """A fit of a model to choices that were drawn from it."""
  return preference.fit(simulated(name), MODELS[name][0])


def but_slow(*names):
  """Models, some of which run with -m slow."""
  return [pytest.param(n, marks=[pytest.mark.slow] * (n in names)) for n in MODELS]


@pytest.mark.parametrize(
  ("won", "alpha", "want"),
  [
    ([(0, 1), (1, 2), (2, 0)], 0.0, [0, 0, 0]),
    ([(0, 1), (0, 1), (1, 2), (2, 0)], 0.0, [0.419617624, -0.419617624, 0]),
    (
      RANDOM,
      1.0,  # choix calls this 0.5
      [-0.51974039, -0.46280878, -0.31376862, -0.06854694, -0.3185146, -0.00346107,
       0.63032783, 1.05651257],
    ),
  ],
  ids=["cycle", "four", "8-random"],
)  # fmt: skip
def test_fits_are_those_of_choix_test_cases(won, alpha, want):
  fit = preference.fit(preference.pairs(won), alpha=alpha)
  np.testing.assert_allclose(fit.utilities, want, atol=1e-7)


def test_wins_and_rankings_are_fitted_as_choix_fits_them():
  choix = pytest.importorskip("choix")
  choices = simulated("bradley_terry")
  won = np.repeat(choices.ranked, choices.counts.astype(int), axis=0).tolist()
  fit = preference.fit(choices, method="mm")
  np.testing.assert_allclose(fit.utilities, choix.ilsr_pairwise(5, won), atol=1e-6)
  rows = [[0, 1, 2], [3, 2, 0], [1, 3]]
  fit = preference.fit(preference.rankings(rows))
  want = choix.ilsr_rankings(4, rows, tol=1e-12)
  np.testing.assert_allclose(fit.utilities, want, atol=1e-6)


@pytest.mark.parametrize("name", but_slow("glenn_david"))
def test_a_fit_and_its_errors_are_those_of_the_direct_likelihood(name):
  fit = fit_of(name)
  utilities, _, tie, inverse = definitions.maximum(name, fit.choices)
  np.testing.assert_allclose(fit.utilities, utilities, atol=2e-6)
  want = definitions.log_likelihood(name, fit.choices, fit.utilities, fit.tie)
  np.testing.assert_allclose(fit.log_likelihood, want, rtol=1e-12)
  errors = preference.standard_errors(fit)
  turn = np.eye(5)[:, :4] - 1 / 5  # from the last item at 0 to a sum of 0
  want = np.sqrt(np.diag(turn @ inverse[:4, :4] @ turn.T))
  np.testing.assert_allclose(errors.utilities, want, rtol=1e-4)
  assert errors.coefficients is None
  if MODELS[name][1] is None:
    assert fit.tie is errors.tie is None
  else:
    np.testing.assert_allclose(fit.tie, tie, atol=2e-6)
    np.testing.assert_allclose(errors.tie, np.sqrt(inverse[-1, -1]), rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_what_a_model_draws_has_its_probabilities(name):
  """Utility plus noise, as the story goes, against the formula of the papers."""
  model, tie = MODELS[name]
  pair, count = np.array([[0, 3]]), 200_000
  drawn = preference.simulate(
    model, TRUE, pair.repeat(count, 0), jax.random.key(5), tie
  )
  chances = preference.chances(model, TRUE, pair, tie)
  win, even = definitions.wins_and_ties(name, np.exp(TRUE), *pair.T, tie or 1.0)
  np.testing.assert_allclose([chances.win, chances.tie], [win, even], rtol=1e-12)
  np.testing.assert_allclose(sum(chances), 1, rtol=1e-12)
  got = [drawn.counts[1 - drawn.ranked[:, 0].argmax()], drawn.tie_counts.sum()]
  np.testing.assert_allclose(np.array(got) / count, [win[0], even[0]], atol=0.005)


def test_utility_plus_gumbel_noise_is_the_logistic_in_every_decile():
  utilities = np.random.default_rng(1).normal(size=8)
  pairs = shown(200_000, items=8)
  drawn = preference.simulate(
    preference.BRADLEY_TERRY, utilities, pairs, jax.random.key(0)
  )
  wins = np.zeros((8, 8))
  wins[tuple(drawn.ranked.T)] = drawn.counts
  chance = special.expit(utilities[:, None] - utilities)
  met = wins + wins.T
  order = chance[met > 0].argsort()
  ends = np.searchsorted(
    np.cumsum(met[met > 0][order]), met.sum() * np.arange(1, 10) / 10
  )
  for cell in np.split(order, ends):
    weight = met[met > 0][cell]
    share = wins[met > 0][cell].sum() / weight.sum()
    assert abs(share - (weight @ chance[met > 0][cell]) / weight.sum()) < 0.006


def test_rankings_are_plackett_luces():
  whole = np.array(list(itertools.permutations(range(4))))
  p = np.exp(TRUE[:4])
  want = np.array([definitions.ranking(p, row) for row in whole])
  model, count = preference.PLACKETT_LUCE, 100_000
  all_four = np.tile(np.arange(4), (count, 1))
  drawn = preference.simulate(model, TRUE[:4], all_four, jax.random.key(3))
  assert np.array_equal(drawn.ranked, whole)
  np.testing.assert_allclose(drawn.counts / count, want, atol=0.004)
  # Partial rankings of different lengths.
  rows = [*shown(60, 4), *shown(60, 3, seed=1), *shown(60, 2, seed=2)]
  choices = preference.rankings(rows)
  fit = preference.fit(choices)
  utilities, _, _, inverse = definitions.maximum("plackett_luce", choices)
  np.testing.assert_allclose(fit.utilities, utilities, atol=2e-6)
  turn = np.eye(5)[:, :4] - 1 / 5
  np.testing.assert_allclose(
    preference.covariance(fit), turn @ inverse @ turn.T, atol=1e-6
  )
  slow = preference.fit(choices, method="mm")
  np.testing.assert_allclose(slow.utilities, fit.utilities, atol=1e-8)


@pytest.mark.parametrize("alpha", [0.0, 3.0])
@pytest.mark.parametrize(
  "name", ["bradley_terry", pytest.param("davidson", marks=pytest.mark.slow)]
)
def test_utilities_may_be_linear_in_features_of_any_scale(name, alpha):
  features = np.random.default_rng(4).normal(size=(5, 2)) * [1.0, 40.0] + [3.0, 500.0]
  model, tie = MODELS[name]
  choices = preference.simulate(
    model, features @ [0.5, -0.02], shown(900), jax.random.key(1), tie
  )
  fit = preference.fit(choices, model, features, alpha)
  scale = np.array([1.0, 40.0])  # SciPy needs it, and the prior is on what we report
  if alpha:
    scale = np.ones(2)
  utilities, coefficients, _, inverse = definitions.maximum(
    name, choices, (features - features.mean(0)) / scale, alpha
  )
  np.testing.assert_allclose(fit.coefficients * scale, coefficients, atol=2e-6)
  np.testing.assert_allclose(fit.utilities, features @ fit.coefficients)
  moved = fit.utilities - fit.utilities.mean()
  np.testing.assert_allclose(moved, utilities, atol=1e-5)
  errors = preference.standard_errors(fit)
  own = np.diag(inverse)[:2]
  np.testing.assert_allclose(errors.coefficients * scale, np.sqrt(own), rtol=1e-3)
  x = features / scale
  np.testing.assert_allclose(
    errors.utilities, np.sqrt(np.diag(x @ inverse[:2, :2] @ x.T)), rtol=1e-3
  )


def test_a_prior_is_half_alpha_times_the_sum_of_squares():
  choices = preference.pairs(
    [(0, 1), (0, 1), (1, 2), (0, 2)]
  )  # without one: no maximum
  fit = preference.fit(choices, alpha=0.3)
  utilities, *_ = definitions.maximum("bradley_terry", choices, alpha=0.3)
  np.testing.assert_allclose(fit.utilities, utilities, atol=1e-6)
  chance = special.expit(fit.utilities[:, None] - fit.utilities)
  met = np.array([[0, 2, 1], [2, 0, 1], [1, 1, 0]])
  information = -met * chance * (1 - chance)
  information += np.diag(0.3 - information.sum(1))
  center = np.eye(3) - 1 / 3
  want = np.linalg.pinv(center @ information @ center)
  np.testing.assert_allclose(preference.covariance(fit), want, atol=1e-9)


@pytest.mark.parametrize(
  "name", ["bradley_terry", pytest.param("rao_kupper", marks=pytest.mark.slow)]
)
def test_bootstrap_intervals_agree_with_standard_errors(name):
  fit = fit_of(name)
  errors = preference.standard_errors(fit)
  found = preference.bootstrap(fit, samples=400, level=0.9, seed=1)
  assert found.left_out == 0
  assert found.parameters.shape == (400, 5 + (fit.tie is not None))
  np.testing.assert_allclose(found.parameters[:, :5].sum(1), 0, atol=1e-9)
  np.testing.assert_allclose(
    found.parameters[:, :5].std(0), errors.utilities, rtol=0.15
  )
  width = found.high.utilities - found.low.utilities
  np.testing.assert_allclose(width, 2 * 1.645 * errors.utilities, rtol=0.2)
  assert (found.low.utilities < fit.utilities).all()
  assert (fit.utilities < found.high.utilities).all()
  if fit.tie is not None:
    width = found.high.tie - found.low.tie
    np.testing.assert_allclose(width, 2 * 1.645 * errors.tie, rtol=0.2)


def test_a_bootstrap_sample_is_a_fit_to_drawn_choices(monkeypatch):
  fit = fit_of("bradley_terry")
  monkeypatch.setattr(uncertainty, "_WORK", 80)  # two samples at a time
  found = preference.bootstrap(fit, samples=3, seed=7).parameters
  drawn = np.random.default_rng(7).multinomial(900, fit.choices.counts / 900, 3)
  for counts, parameters in zip(drawn, found, strict=True):
    again = preference.fit(preference.pairs(fit.choices.ranked, counts))
    np.testing.assert_allclose(parameters, again.utilities, atol=1e-7)


def test_bootstrap_samples_without_a_maximum_are_left_out_and_counted():
  wins = np.array([[0, 30, 25], [28, 0, 30], [3, 2, 0]])
  fit = preference.fit(preference.matrix(wins))
  found = preference.bootstrap(fit, samples=400)
  assert 0 < found.left_out < 20
  assert len(found.parameters) == 400 - found.left_out
  assert np.abs(found.parameters).max() < 5
  wins[2] = [1, 0, 0]
  with pytest.raises(InputError, match="of 40 bootstrap samples have no maximum; fit"):
    preference.bootstrap(preference.fit(preference.matrix(wins)), samples=40)


@pytest.mark.parametrize(
  ("choices", "says"),
  [
    (preference.pairs(RANDOM), "item 7 never lost to any other item. Observe more, or"),
    (
      preference.pairs([("a", "c"), ("a", "b"), ("b", "a")]),
      "item 'c' never won over any other item",
    ),
    (
      preference.pairs([(0, 1), (1, 0), (2, 3), (3, 2), (2, 4), (4, 2)]),
      r"items 0, 1 never met any other item \(items 2, 3, 4\)",
    ),
    (preference.pairs([(0, 1), (1, 0)], items=3), "item 2 never met any other item"),
    (preference.rankings([[0, 1, 2], [1, 0, 2]]), "item 2 never won over any other"),
  ],
)
def test_a_likelihood_without_maximum_is_refused_with_its_reason(choices, says):
  for method in ("lbfgs", "mm"):
    with pytest.raises(InputError, match=f"has no maximum: {says}"):
      preference.fit(choices, method=method)


def observed(rng, ties):
  """Random choices among four items, and a matrix of wins, one of ties."""
  won = rng.poisson(0.5, (4, 4)) * (1 - np.eye(4, dtype=int))
  tied = rng.poisson(ties, (4, 4)) * np.triu(np.ones((4, 4), int), 1)
  return preference.matrix(won, tied) if (won + tied).any() else None, won, tied


def test_wins_have_a_maximum_exactly_if_no_group_only_won():
  rng, seen = np.random.default_rng(0), set()
  groups = [list(g) for k in (1, 2, 3) for g in itertools.combinations(range(4), k)]
  for _ in range(150):
    choices, won, _ = observed(rng, 0.0)
    if choices is None:
      continue
    want = all(
      won[np.ix_([i for i in range(4) if i not in g], g)].any() for g in groups
    )
    assert (existence.reason(choices, preference.Model(), None, 0.0) is None) == want
    assert existence.reason(choices, preference.Model(), None, 1.0) is None
    seen.add(want)
  assert seen == {True, False}


def test_ties_have_a_maximum_exactly_if_nothing_can_grow_for_ever():
  """Against shortest paths: differences of at least 1 for wins, at most 1 for ties."""
  rng, seen = np.random.default_rng(1), []
  for _ in range(150):
    choices, won, tied = observed(rng, 0.4)
    if choices is None or not (won.any() and tied.any()):
      continue
    met = won + tied + tied.T
    whole = csgraph.connected_components(met, connection="strong")[0] == 1
    length = np.where(tied + tied.T > 0, 1.0, np.inf)
    length = np.where(won > 0, -1.0, length)  # d[j] <= d[i] - 1
    try:
      csgraph.bellman_ford(csgraph.csgraph_from_dense(length, null_value=np.inf))
      grows = True
    except csgraph.NegativeCycleError:
      grows = False
    want = whole and not grows
    for model in (preference.DAVIDSON, preference.RAO_KUPPER):
      assert (existence.reason(choices, model, None, 0.0) is None) == want
    seen.append((whole, want))
  assert {(True, True), (True, False), (False, False)} <= set(seen)


@pytest.mark.parametrize(
  ("features", "model", "says"),
  [
    ([[0, 5.0], [1, 5.0], [2, 5.0]], "bradley_terry", "feature 1 has the same value"),
    ([[0, 2.0], [1, 3.0], [5, 7.0]], "bradley_terry", "do not tell features"),
    ([[3.0], [2.0], [1.0]], "bradley_terry", "coefficients of features 0: they order"),
    ([[3.0], [2.0], [2.5]], "thurstone", "coefficients of features 0: they order"),
  ],
)
def test_features_that_are_separated_or_not_identified_are_refused(
  features, model, says
):
  choices = preference.pairs([(0, 1), (0, 2)])
  with pytest.raises(InputError, match=says):
    preference.fit(choices, MODELS[model][0], features)


def test_rankings_are_separated_by_features_that_order_them():
  choices = preference.rankings([[0, 1, 2]])
  for values, ordered in (([3, 2, 1], True), ([3, 1, 2], False), ([1, 2, 2], True)):
    features = np.array(values, float)[:, None]
    why = existence.reason(choices, preference.Model(), features, 0.0)
    assert (why is not None) == ordered


def test_one_choice_against_the_order_is_enough():
  won = [(0, 1), (0, 2), (1, 2)] * 5
  features = np.array([[3.0], [2.0], [1.0]])
  fit = preference.fit(preference.pairs([*won, (2, 0)]), features=features)
  assert 0 < fit.coefficients[0] < 10


@pytest.mark.parametrize(
  ("call", "says"),
  [
    (lambda: preference.Model("cauchy"), "unknown noise 'cauchy'"),
    (lambda: preference.Model(ties="davidsn"), "Did you mean 'davidson'?"),
    (lambda: preference.Model("normal", "davidson"), "ties with normal noise"),
    (lambda: preference.pairs([(0, 1, 2)]), "row 0 of pairs is"),
    (lambda: preference.pairs([(0, 1), (1, 1)]), r"row 1 has an item twice: \[1, 1\]"),
    (lambda: preference.pairs([(0, -1)]), "item -1 is neither"),
    (lambda: preference.pairs([(0, 0.5)]), "item 0.5 is neither"),
    (lambda: preference.pairs([(0, "a")]), "item 0 is not a name"),
    (lambda: preference.pairs([("a", "b")], items=["a"]), "unknown item 'b'"),
    (lambda: preference.pairs([(0, 3)], items=3), "needs items >= 4, not 3"),
    (lambda: preference.pairs([(0, 10**9)]), "1,000,000,001 items are more than"),
    (lambda: preference.pairs([(0, 1)], [np.nan]), "count nan of row 0"),
    (lambda: preference.pairs([(0, 1)], [1, 2]), "2 counts for 1 rows"),
    (lambda: preference.pairs([]), "two items or more, not 0"),
    (lambda: preference.pairs([], items=2), "there are no choices"),
    (lambda: preference.matrix([[0, 1]]), r"have the shape \(1, 2\)"),
    (lambda: preference.matrix([[1, 1], [1, 0]]), r"wins\[0, 0\] is not 0"),
    (lambda: preference.matrix(np.eye(2)[::-1], [[0, 1], [2, 0]]), "differs from"),
    (lambda: preference.rankings([[0]]), "not a ranking of two or more"),
    (lambda: preference.rankings([[0, 1, 0]]), "row 0 has an item twice"),
    (lambda: fitted(method="newton"), "unknown method 'newton'"),
    (lambda: fitted(alpha=-1.0), "alpha is -1.0"),
    (lambda: fitted(model=preference.DAVIDSON), "but no tie is there"),
    (lambda: fitted([(0, 1)], model=preference.DAVIDSON, ties=[(0, 1)]), "more ties"),
    (lambda: fitted(ties=[(0, 1)]), "1 ties were observed"),
    (lambda: fitted(method="mm", alpha=1.0), "'mm' fits"),
    (lambda: fitted(features=np.ones((2, 1))), r"shape \(2, 1\), not \[3 items"),
    (lambda: fitted(features=[[1.0], [np.nan], [0]]), "feature 0 of item 1 is not"),
    (lambda: fitted(counts=[2, 1, 1], method="mm", steps=2), "within 2 steps of 'mm'"),
    (lambda: fitted(steps=0), "steps is 0"),
    (lambda: preference.bootstrap(fitted(), 10**8), "lower samples"),
    (lambda: fitted(counts=[2, 1, 1], steps=1), "within 1 steps of 'lbfgs'"),
    (lambda: preference.fit(preference.rankings([[0, 1, 2]]), preference.THURSTONE),
     "rankings of 3 items need"),
    (lambda: preference.bootstrap(fitted(), level=95), "level 95 is not between"),
    (lambda: preference.bootstrap(fitted(counts=[0.5, 1, 1])), "must be whole"),
    (lambda: preference.chances(preference.DAVIDSON, TRUE, [[0, 1]]), "needs tie > 0"),
    (lambda: preference.chances(preference.Model(), TRUE, [[0, 1]], 1), "has no ties"),
    (lambda: preference.chances(preference.Model(), TRUE, [[0, 5]]), "from 0 to 4"),
    (lambda: preference.simulate(preference.Model(), TRUE, [0, 1], jax.random.key(0)),
     r"not \[n, 2\]"),
  ],
)  # fmt: skip
def test_bad_input_is_one_clear_line(call, says):
  with pytest.raises(InputError, match=says) as info:
    call()
  assert "\n" not in str(info.value)


def fitted(won=((0, 1), (1, 2), (2, 0)), counts=None, ties=(), **options):
  return preference.fit(preference.pairs(won, counts, ties), **options)


def test_forms_of_the_same_choices_are_one():
  named = preference.pairs([("b", "a"), ("a", "c"), ("b", "a")], ties=[("c", "a")])
  table = preference.matrix(
    [[0, 0, 1], [2, 0, 0], [0, 0, 0]], [[0, 0, 1]] + [[0] * 3] * 2
  )
  counted = preference.pairs([(1, 0), (0, 2)], [2, 1], [(0, 2)])
  ranked = preference.rankings([["b", "a"], ["b", "a"], ["a", "c"]])
  assert named.names == ranked.names == ("a", "b", "c")
  for other in (table, counted):
    for field in ("ranked", "counts", "tied", "tie_counts"):
      assert np.array_equal(getattr(named, field), getattr(other, field)), field
  assert np.array_equal(ranked.counts, named.counts)
  assert np.array_equal(ranked.ranked, named.ranked)


def test_float64_is_used_and_left_off():
  fit = fit_of("bradley_terry")
  assert fit.utilities.dtype == preference.covariance(fit).dtype == np.float64
  assert jnp.ones(3).dtype == jnp.float32
  assert not jax.config.jax_enable_x64


def test_simulation_follows_its_key():
  draws = [simulation.simulate(preference.Model(), TRUE, shown(50), jax.random.key(k))
           for k in (0, 0, 1)]  # fmt: skip
  same, again, other = (d.counts.tolist() for d in draws)
  assert same == again != other
