"""Laws as frozen dataclasses with pure methods; arrays broadcast.

  power        L(N), L(D), L(C): one power, and how a power splits a budget
  chinchilla   L(N, D) = E + A / N^alpha + B / D^beta
"""

from jaxpeft.scaling.laws.chinchilla import Parametric

__all__ = ["Parametric"]
