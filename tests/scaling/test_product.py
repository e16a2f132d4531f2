"""The multiplicative law's fit, against known laws and SciPy."""

import numpy as np
import pytest
from scipy import optimize

from jaxpeft.errors import InputError
from jaxpeft.scaling import laws, product

LAW = laws.Multiplicative(A=30.0, E=0.4, alpha=0.07, beta=0.35)
X = np.repeat([1e5, 4e5, 1.6e6, 6.4e6], 5)
D = np.tile([64, 128, 256, 512, 1024], 4).astype(float)


def noisy(scale: float, seed: int = 0):
  noise = np.random.default_rng(seed).normal(0, scale, len(X))
  return LAW.loss(X, D) * np.exp(noise)


def test_exact_points_give_the_law_back():
  law = product.fit(X, D, LAW.loss(X, D))
  assert (law.E, law.alpha, law.beta) == pytest.approx((0.4, 0.07, 0.35), abs=2e-4)
  assert law.A == pytest.approx(30, rel=2e-3)


def test_no_search_of_scipy_finds_a_better_law():
  loss = noisy(0.02)
  law = product.fit(X, D, loss)

  def error(theta):
    a, alpha, beta, e = theta
    predicted = np.abs(e) + np.exp(a - alpha * np.log(X) - beta * np.log(D))
    return np.log(predicted / loss)

  ours = (error([np.log(law.A), law.alpha, law.beta, law.E]) ** 2).sum()
  starts = [[3.4, 0.07, 0.35, 0.4], [1.0, 0.0, 0.2, 0.1], [5.0, 0.2, 0.5, 0.6]]
  theirs = min(optimize.least_squares(error, x).cost * 2 for x in starts)
  assert ours < theirs * 1.005


def test_intervals_hold_the_truth():
  loss = noisy(0.02, 1)
  drawn = product.bootstrap(X, D, loss, 300)
  for name in ("alpha", "beta", "E"):
    low, high = np.percentile(drawn[name], [0.5, 99.5])
    assert low < getattr(LAW, name) < high
  again = product.bootstrap(X, D, loss, 300)
  assert all(np.array_equal(drawn[k], again[k]) for k in drawn)
  spread = [product.fit(X, D, noisy(0.02, seed)).beta for seed in range(60)]
  assert 0.4 < drawn["beta"].std() / np.std(spread) < 2.5


def test_too_few_kinds_of_runs_are_refused():
  with pytest.raises(InputError, match="three amounts of data"):
    product.fit(X[:5], D[:5], LAW.loss(X, D)[:5])
  few = np.isin(D, (64, 128))
  with pytest.raises(InputError, match="three amounts of data"):
    product.fit(X[few], D[few], LAW.loss(X, D)[few])
