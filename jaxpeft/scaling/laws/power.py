"""Single powers: L(N), L(D) and L(C), and a budget that is split by a power."""

import dataclasses

FLOPS = 6  # of training, for each parameter and token: C = 6 N D
PF_DAY = 1e15 * 24 * 3600  # FLOPs: a petaflop per second for a day, 8.64e19


@dataclasses.dataclass(frozen=True)
class Power:
  """L(x) = (scale / x)^alpha, where x alone limits the loss.

  Attributes:
    scale: in the unit of x, positive.
    alpha: positive; doubling x multiplies the loss by 2^-alpha.
  """

  scale: float
  alpha: float

  def loss(self, x):
    """The loss in nats at x: parameters, tokens or FLOPs."""
    return (self.scale / x) ** self.alpha

  def inverse(self, loss):
    """The x at which the loss is reached."""
    return self.scale / loss ** (1 / self.alpha)


@dataclasses.dataclass(frozen=True)
class Allocation:
  """A split of a budget by a power: N = scale C^a, and D = C / (6 N).

  Attributes:
    scale: positive; the best N at C = 1, an extrapolation that sets the line's height.
    a: the exponent of the best N, between 0 and 1.
    best: the loss as a power of C, if the source gives it.
  """

  scale: float
  a: float
  best: Power | None = None

  @property
  def b(self):
    """The exponent of the best D."""
    return 1 - self.a

  def optimum(self, c):
    """(N, D) for c FLOPs, with 6 N D = c."""
    n = self.scale * c**self.a
    return n, c / FLOPS / n

  def frontier(self, c):
    """The smallest loss in nats that c FLOPs reach; None if the law gives no loss."""
    return None if self.best is None else self.best.loss(c)
