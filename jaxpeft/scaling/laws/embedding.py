"""Chinchilla's law seen without the embeddings: Pearce and Song 2024.

Kaplan et al. counted neither the parameters of embeddings nor their FLOPs; Hoffmann et
al. counted both. In small models the embeddings are most of the parameters. A model
with N_E parameters without embeddings has about N_T = N_E + gamma N_E^(1/3) in all: at
a fixed ratio of width to depth, N_E grows as the cube of the width, and the embeddings
grow as the width. If Chinchilla's law holds for N_T, the best N_E for C_E = 6 N_E D
FLOPs is no power of C_E. Its local exponent is beta / (alpha / 3 + beta) for tiny
models and beta / (alpha + beta) for large ones. Between them, where N_E is about
(gamma / 3)^1.5, it rises almost to 1. A line through the sizes of Kaplan et al. gives
about their exponent, 0.73.

Source: Pearce and Song 2024, arXiv 2406.12907, equations 8 to 13.
"""

import dataclasses

import numpy as np

from jaxpeft.scaling.laws.chinchilla import Parametric
from jaxpeft.scaling.laws.power import FLOPS

GAMMA = 47_491.0  # of the models of Hoffmann et al., whose vocabulary has 32,000 tokens


@dataclasses.dataclass(frozen=True)
class WithoutEmbedding:
  """A law of all parameters, as a law of those without embeddings.

  Attributes:
    law: the law of all parameters.
    gamma: N_T = N_E + gamma N_E^(1/3).
  """

  law: Parametric
  gamma: float = GAMMA

  def total(self, n):
    """All parameters of a model that has n without embeddings."""
    return n + self.gamma * n ** (1 / 3)

  def loss(self, n, d):
    """The loss in nats of n parameters without embeddings after d tokens."""
    return self.law.loss(self.total(n), d)

  def budget(self, n):
    """C_E: the FLOPs (without embeddings) of which n is the best size."""
    law, total = self.law, self.total(n)
    slope = n + self.gamma / 3 * n ** (1 / 3)  # n dN_T/dn
    ratio = law.beta * law.B * total ** (1 + law.alpha) / (law.alpha * law.A * slope)
    return FLOPS * n * ratio ** (1 / law.beta)

  def exponent(self, n):
    """The local exponent d ln N_E / d ln C_E of the best size, where it is n."""
    law, w = self.law, n ** (2 / 3)
    first = (w + self.gamma / 9) / (w + self.gamma / 3)
    second = (w + self.gamma / 3) / (w + self.gamma)
    return law.beta / (law.beta - first + (1 + law.alpha) * second)

  def optimum(self, c):
    """(N_E, D) with the smallest loss for c FLOPs without embeddings."""
    c = np.asarray(c, np.float64)
    # budget(n) grows with n; ln n by halving, in an interval that holds any model
    low, high = np.zeros_like(c + self.law.A), np.full_like(c + self.law.A, 120.0)
    for _ in range(100):
      middle = (low + high) / 2
      less = self.budget(np.exp(middle)) < c
      low, high = np.where(less, middle, low), np.where(less, high, middle)
    n = np.exp((low + high) / 2)
    return n, c / FLOPS / n

  def frontier(self, c):
    """The smallest loss in nats that c FLOPs without embeddings reach."""
    return self.loss(*self.optimum(c))


def observed_exponents(law: WithoutEmbedding) -> tuple[float, float]:
  """(without embeddings, in all): the exponents that a study of Kaplan's sizes sees.

  Twenty sizes from 800 to 1.6 billion parameters without embeddings are trained on a
  grid of token counts. For each of 100 budgets the best size is taken, each size at the
  token count that is nearest to the budget, and a line is fitted to the logarithms.
  This is the procedure of the paper's figures 3 and 5; the grid of tokens moves the
  third digit.
  """
  sizes = np.logspace(2.9, 9.2, 20)
  tokens = np.logspace(6, 25, 1000)
  total = law.total(sizes)
  losses = law.loss(sizes, tokens[:, None])  # [tokens, sizes]
  found = []
  for counted, first in ((sizes, 12.95), (total, 14.0)):
    budgets = np.logspace(first, 20.7, 100)
    spent = FLOPS * counted * tokens[:, None]
    nearest = np.abs(spent - budgets[:, None, None]).argmin(1)  # [budgets, sizes]
    best = np.take_along_axis(losses, nearest, 0).argmin(1)
    found.append(np.polyfit(np.log(budgets), np.log(counted[best]), 1)[0])
  return float(found[0]), float(found[1])
