"""Laws as frozen dataclasses with pure methods; arrays broadcast.

  power        L(N), L(D), L(C): one power; how a power splits a budget
  chinchilla   L(N, D) = E + A / N^alpha + B / D^beta
  kaplan       L(N, D), L(N, S), and the critical batch
  embedding    Chinchilla's law in parameters without embeddings
  width_depth  the law of Gemstones in width, depth, parameters and tokens
  finetuning   L(X, D) = A / (X^alpha D^beta) + E
  files        laws with their uncertainty, and JSON files of them
  published    the numbers of the literature, by name

A law of a budget has `optimum(c) -> (N, D)` and `frontier(c) -> L`; `a` and `b` are the
exponents of the best N and D, where these are powers.
"""

from jaxpeft.scaling.laws.chinchilla import Parametric
from jaxpeft.scaling.laws.embedding import GAMMA, WithoutEmbedding, observed_exponents
from jaxpeft.scaling.laws.files import Fitted, from_json, read, to_json, write
from jaxpeft.scaling.laws.finetuning import Multiplicative, crossing
from jaxpeft.scaling.laws.kaplan import CriticalBatch, DataLimited, Steps
from jaxpeft.scaling.laws.power import FLOPS, PF_DAY, Allocation, Power
from jaxpeft.scaling.laws.published import PUBLISHED
from jaxpeft.scaling.laws.width_depth import WidthDepth

__all__ = [
  "FLOPS",
  "GAMMA",
  "PF_DAY",
  "PUBLISHED",
  "Allocation",
  "CriticalBatch",
  "DataLimited",
  "Fitted",
  "Multiplicative",
  "Parametric",
  "Power",
  "Steps",
  "WidthDepth",
  "WithoutEmbedding",
  "crossing",
  "from_json",
  "observed_exponents",
  "read",
  "to_json",
  "write",
]
