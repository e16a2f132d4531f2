"""The joint laws of Kaplan et al. 2020: L(N, D), L(N, S) and the critical batch.

N counts parameters without embeddings, D tokens, S steps of the optimizer, B tokens of
a batch. The laws of one variable are `power.Power`.

A training run that reaches the loss L needs at least S_min steps (with huge batches)
and at least E_min tokens (with tiny batches). Between huge and tiny is the critical
batch

  B_crit(L) = B_star / L^(1 / alpha_B) = E_min / S_min,

and a run of S steps with batches of B tokens reaches the same loss as

  S_min = S / (1 + B_crit(L) / B)   steps,   C_min = C / (1 + B / B_crit(L))   FLOPs.

Source: Kaplan et al. 2020, arXiv 2001.08361, equations 1.4 to 1.8, 5.4 and 5.5,
appendix A and B; McCandlish et al. 2018 for the critical batch.
"""

import dataclasses

import numpy as np

from jaxpeft.scaling.laws.power import FLOPS

_HALVINGS = 200  # of an interval of losses; float64 stops moving after about 60


@dataclasses.dataclass(frozen=True)
class DataLimited:
  """L(N, D) = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D.

  The loss of a model that is trained on D tokens until it starts to overfit. The law
  does not say how many FLOPs that takes, so it has no optimum for a budget.
  """

  N_c: float
  D_c: float
  alpha_N: float
  alpha_D: float

  def loss(self, n, d):
    """The loss in nats at early stopping; n and d broadcast."""
    limit = (self.N_c / n) ** (self.alpha_N / self.alpha_D)
    return (limit + self.D_c / d) ** self.alpha_D

  def overfitting(self, n, d):
    """How much larger the loss is than with endless data, as a share: 0.02 is 2 %."""
    return self.loss(n, d) / (self.N_c / n) ** self.alpha_N - 1

  def tokens(self, n, share: float = 0.02):
    """Tokens with which n parameters overfit by `share`; they grow as n^0.74."""
    limit = (self.N_c / n) ** (self.alpha_N / self.alpha_D)
    return self.D_c / (limit * ((1 + share) ** (1 / self.alpha_D) - 1))


@dataclasses.dataclass(frozen=True)
class CriticalBatch:
  """B_crit(L) = B_star / L^(1 / alpha_B), in tokens."""

  B_star: float
  alpha_B: float

  def tokens(self, loss):
    """The critical batch in tokens at a loss."""
    return self.B_star / loss ** (1 / self.alpha_B)

  def least_steps(self, steps, batch, loss):
    """S_min: steps that huge batches would have needed to reach the loss."""
    return steps / (1 + self.tokens(loss) / batch)

  def least_flops(self, flops, batch, loss):
    """C_min: FLOPs that tiny batches would have needed to reach the loss."""
    return flops / (1 + batch / self.tokens(loss))


@dataclasses.dataclass(frozen=True)
class Steps:
  """L(N, S_min) = (N_c / N)^alpha_N + (S_c / S_min)^alpha_S, with endless data."""

  N_c: float
  S_c: float
  alpha_N: float
  alpha_S: float
  batch: CriticalBatch

  def loss(self, n, least_steps):
    """The loss in nats after S_min steps; n and least_steps broadcast."""
    return (self.N_c / n) ** self.alpha_N + (self.S_c / least_steps) ** self.alpha_S

  def trained(self, n, steps, batch):
    """The loss in nats after `steps` steps with batches of `batch` tokens.

    S_min depends on the loss, so this solves L = L(N, S_min(S, B, L)) for L. The right
    side falls as L grows, so there is one solution.
    """
    n, steps, batch = np.broadcast_arrays(*map(np.float64, (n, steps, batch)))
    low = (self.N_c / n) ** self.alpha_N
    high = np.full_like(low, 1e3)
    for _ in range(_HALVINGS):
      middle = (low + high) / 2
      least = self.batch.least_steps(steps, batch, middle)
      above = self.loss(n, least) > middle
      low, high = np.where(above, middle, low), np.where(above, high, middle)
    return (low + high) / 2

  @property
  def a(self):
    """The exponent of the best N: it grows as C_min^a (appendix B.2)."""
    return 1 / (1 + self.alpha_N / self.batch.alpha_B + self.alpha_N / self.alpha_S)

  @property
  def b(self):
    """The exponent of the tokens that the best N sees, E_min = B_crit S_min."""
    return 1 - self.a

  def optimum(self, c):
    """(N, D) with the smallest loss for c = C_min FLOPs, with 6 N D = c.

    At the optimum the term of the steps is alpha_N / alpha_S times that of the size.
    """
    share = self.alpha_N / self.alpha_S
    steps = self.S_c / share ** (1 / self.alpha_S)  # S_min where the size's term is 1
    batch = self.batch.tokens(1 + share)
    n = self.N_c * (c / (FLOPS * self.N_c * batch * steps)) ** self.a
    return n, c / FLOPS / n

  def frontier(self, c):
    """The smallest loss in nats that c = C_min FLOPs reach."""
    n, _ = self.optimum(c)
    return (1 + self.alpha_N / self.alpha_S) * (self.N_c / n) ** self.alpha_N
