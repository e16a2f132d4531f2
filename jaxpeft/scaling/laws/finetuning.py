"""The multiplicative law of fine-tuning, Zhang et al. 2024.

L(X, D) = A / (X^alpha D^beta) + E, with D rows (or tokens) of fine-tuning data. X is
another quantity that is scaled: the parameters of the base, its pretraining tokens, or
the parameters of the adapter. In the product, unlike in Chinchilla's sum, the same
factor in D lowers L - E by the same share at every X.

Source: Zhang et al. 2024, "When Scaling Meets LLM Finetuning", ICLR, arXiv 2402.17193,
equation 1.
"""

import dataclasses

from jaxpeft.errors import InputError


@dataclasses.dataclass(frozen=True)
class Multiplicative:
  """L(X, D) = A / (X^alpha D^beta) + E.

  Attributes:
    A: positive.
    E: the floor in nats, not negative.
    alpha, beta: the exponents of X and of D. An alpha near 0, as the authors find for
      the rank of LoRA, means that X hardly matters.
  """

  A: float
  E: float
  alpha: float
  beta: float

  def loss(self, x, d):
    """The loss in nats after fine-tuning; x and d broadcast."""
    return self.E + self.A / (x**self.alpha * d**self.beta)

  def data(self, x, loss):
    """The D with which x reaches a loss above E."""
    return (self.A / (x**self.alpha * (loss - self.E))) ** (1 / self.beta)


def crossing(first: Multiplicative, second: Multiplicative, x):
  """The D at which two methods have the same loss, if their floors are the same.

  With less data, the method with the smaller beta is better. Equation 2 of the
  source: D = H X^gamma, with
  H = (A_1 / A_2)^(1 / (beta_1 - beta_2)) and
  gamma = (alpha_2 - alpha_1) / (beta_1 - beta_2).

  Raises:
    InputError: the floors differ, or the betas are equal.
  """
  if first.E != second.E or first.beta == second.beta:
    raise InputError("the floors must be equal and the exponents of data different")
  gap = first.beta - second.beta
  h = (first.A / second.A) ** (1 / gap)
  return h * x ** ((second.alpha - first.alpha) / gap)
