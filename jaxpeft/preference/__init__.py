"""Choice models: from what people chose to utilities, with their uncertainty.

A chooser gives every item i a random utility U_i = r_i + noise, and takes the items in
the order of U. Gumbel noise makes this the model of Bradley and Terry for pairs and of
Plackett and Luce for rankings; normal noise makes it Thurstone's.

  choices      what was observed: pairs, matrices of wins, rankings, ties
  models       the models and their probabilities
  existence    whether the likelihood has a maximum, and why not
  estimation   maximum likelihood by L-BFGS; mm: by Hunter's MM algorithm
  uncertainty  standard errors and bootstrap intervals
  simulation   choices drawn from a model

Everything computes in float64, without changing JAX's global setting. Axes: N distinct
rankings, K places of a ranking, M tied pairs, I items, F features, P parameters.
"""

from jaxpeft.preference.choices import Choices, matrix, pairs, rankings
from jaxpeft.preference.estimation import Fit, fit
from jaxpeft.preference.models import (
  BRADLEY_TERRY,
  DAVIDSON,
  GLENN_DAVID,
  PLACKETT_LUCE,
  RAO_KUPPER,
  THURSTONE,
  Model,
  chances,
)
from jaxpeft.preference.simulation import simulate
from jaxpeft.preference.uncertainty import (
  Bootstrap,
  Values,
  bootstrap,
  covariance,
  standard_errors,
)

__all__ = [
  "BRADLEY_TERRY",
  "DAVIDSON",
  "GLENN_DAVID",
  "PLACKETT_LUCE",
  "RAO_KUPPER",
  "THURSTONE",
  "Bootstrap",
  "Choices",
  "Fit",
  "Model",
  "Values",
  "bootstrap",
  "chances",
  "covariance",
  "fit",
  "matrix",
  "pairs",
  "rankings",
  "simulate",
  "standard_errors",
]
