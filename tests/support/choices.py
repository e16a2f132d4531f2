"""Choice models as their papers write them, in NumPy, maximized by SciPy."""

import numpy as np
from scipy import optimize, stats


def wins_and_ties(name, p, i, j, t):
  """(P(i before j), P(neither)) with p = exp(utility), arrays."""
  if name == "bradley_terry":
    return p[i] / (p[i] + p[j]), 0 * p[i]
  if name == "davidson":  # 1970, equation 2.3
    whole = p[i] + p[j] + t * np.sqrt(p[i] * p[j])
    return p[i] / whole, t * np.sqrt(p[i] * p[j]) / whole
  if name == "rao_kupper":  # 1967, equations 3.3 and 3.4
    theta = np.exp(t)
    tie = p[i] * p[j] * (theta**2 - 1)
    tie /= (p[i] + theta * p[j]) * (p[j] + theta * p[i])
    return p[i] / (p[i] + theta * p[j]), tie
  difference = np.log(p[i]) - np.log(p[j])
  noise = stats.norm(scale=np.sqrt(2))  # of the difference of two of variance 1
  if name == "thurstone":
    return noise.cdf(difference), 0 * p[i]
  assert name == "glenn_david"
  return noise.cdf(difference - t), noise.cdf(difference + t) - noise.cdf(
    difference - t
  )


def ranking(p, row):
  """Plackett-Luce's probability of one ranking."""
  row = [i for i in row if i >= 0]
  return np.prod([p[row[k]] / p[row[k:]].sum() for k in range(len(row))])


def log_likelihood(name, choices, utilities, t):
  """Of all choices, in nats."""
  p = np.exp(utilities)
  if choices.ranked.shape[1] > 2:
    each = np.array([ranking(p, row) for row in choices.ranked])
    return choices.counts @ np.log(each)
  won, tied = choices.ranked.T, choices.tied.T
  total = choices.counts @ np.log(wins_and_ties(name, p, *won, t)[0])
  if choices.tied.size:
    total += choices.tie_counts @ np.log(wins_and_ties(name, p, *tied, t)[1])
  return total


def maximum(name, choices, features=None, alpha=0.0):
  """(utilities, coefficients, tie, standard errors of the parameters), by SciPy.

  The parameters are the utilities of all items but the last, which is 0, or the
  coefficients, and t. The standard errors are those of finite differences.
  """
  ties = bool(choices.tied.size)
  items = choices.items
  count = (items - 1 if features is None else features.shape[1]) + ties

  def split(x):
    first, t = (x[:-1], x[-1]) if ties else (x, 1.0)
    if features is None:
      utilities = np.append(first, 0.0)
      return utilities - utilities.mean(), None, t
    return features @ first, first, t

  def value(x):
    utilities, coefficients, t = split(x)
    squares = np.sum((utilities if features is None else coefficients) ** 2)
    return alpha / 2 * squares - log_likelihood(name, choices, utilities, t)

  start = np.zeros(count)
  bounds = [(None, None)] * count
  if ties:
    start[-1], bounds[-1] = 0.5, (1e-3, None)
  found = start
  for _ in range(3):  # a new start ends what rounding had stopped
    found = optimize.minimize(
      value, found, method="L-BFGS-B", bounds=bounds, jac="3-point",
      options=dict(ftol=1e-15, gtol=1e-9, maxiter=2000),
    ).x  # fmt: skip
  step, eye = 1e-4, np.eye(count)
  hessian = np.array(
    [
      [
        (
          value(found + step * (a + b)) - value(found + step * (a - b))
          - value(found - step * (a - b)) + value(found - step * (a + b))
        ) / (4 * step**2)
        for a in eye
      ]
      for b in eye
    ]
  )  # fmt: skip
  return *split(found), np.linalg.inv(hessian)
