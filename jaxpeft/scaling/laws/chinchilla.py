"""The parametric law of Hoffmann et al. 2022, "Chinchilla": two powers above a floor.

L(N, D) = E + A / N^alpha + B / D^beta, with N parameters and D tokens. With C = 6 N D,
the loss of a budget C is smallest where

  N = G (C / 6)^a   and   D = (C / 6)^b / G,
  a = beta / (alpha + beta),   b = alpha / (alpha + beta),
  G = (alpha A / (beta B))^(1 / (alpha + beta)).

Source: Hoffmann et al. 2022, arXiv 2203.15556, equations 2 to 4.
"""

import dataclasses

from jaxpeft.scaling.laws.power import FLOPS


@dataclasses.dataclass(frozen=True)
class Parametric:
  """L(N, D) = E + A / N^alpha + B / D^beta.

  Attributes:
    A, B, E: positive; E is the loss in nats for unlimited parameters and tokens.
    alpha, beta: the exponents of parameters and of tokens, positive.
  """

  A: float
  B: float
  E: float
  alpha: float
  beta: float

  def loss(self, n, d):
    """The loss in nats of n parameters trained on d tokens; they broadcast."""
    return self.E + self.A / n**self.alpha + self.B / d**self.beta

  @property
  def a(self):
    """The exponent of the best N: it grows as C^a."""
    return self.beta / (self.alpha + self.beta)

  @property
  def b(self):
    """The exponent of the best D: it grows as C^b; a + b = 1."""
    return self.alpha / (self.alpha + self.beta)

  @property
  def scale(self):
    """G: the best N is G (C / 6)^a."""
    ratio = self.alpha * self.A / (self.beta * self.B)
    return ratio ** (1 / (self.alpha + self.beta))

  def optimum(self, c):
    """(N, D) with the smallest loss among those with 6 N D = c FLOPs."""
    n = self.scale * (c / FLOPS) ** self.a
    return n, c / FLOPS / n

  def frontier(self, c):
    """The smallest loss in nats that c FLOPs reach."""
    return self.loss(*self.optimum(c))
