"""The laws of the literature, with their published numbers, by name.

Tables 3 and A3 of Hoffmann et al. give no formula for approaches 1 and 2. Within
rounding, their rows lie on a power of C. It is fitted here by least squares of the
logarithms. The constants of approach 3 are published with rounded digits. The unrounded
ones are from Besiroglu et al. ("Epoch"), who read them from the paper's source.
"""

import numpy as np

from jaxpeft.scaling.laws.chinchilla import Parametric
from jaxpeft.scaling.laws.embedding import WithoutEmbedding
from jaxpeft.scaling.laws.files import Fitted
from jaxpeft.scaling.laws.kaplan import CriticalBatch, DataLimited, Steps
from jaxpeft.scaling.laws.power import PF_DAY, Allocation, Power
from jaxpeft.scaling.laws.width_depth import WidthDepth

# ---- Kaplan et al. 2020, tables 2, 3, 5 and 6. N without embeddings.
KAPLAN_N = Power(8.8e13, 0.076)  # L(N), parameters
KAPLAN_D = Power(5.4e13, 0.095)  # L(D), tokens
KAPLAN_C = Power(1.6e7 * PF_DAY, 0.057)  # L(C) at a fixed batch, "naive"
KAPLAN_C_MIN = Power(3.1e8 * PF_DAY, 0.050)  # L(C_min), below the critical batch
KAPLAN_ND = DataLimited(6.4e13, 1.8e13, 0.076, 0.103)
KAPLAN_BATCH = CriticalBatch(2.1e8, 0.21)
KAPLAN_NS = Steps(6.5e13, 2.1e3, 0.077, 0.76, KAPLAN_BATCH)

# ---- Hoffmann et al. 2022, table 2: exponents, with their 10 % and 90 % percentiles
EXPONENTS = {  # approach: (a, its ends), (b, its ends)
  1: ((0.50, 0.488, 0.502), (0.50, 0.501, 0.512)),
  2: ((0.49, 0.462, 0.534), (0.51, 0.483, 0.529)),
  3: ((0.46, 0.454, 0.455), (0.54, 0.542, 0.543)),
}
# tables 3 (approach 1) and A3 (approach 2): parameters, FLOPs, tokens
TABLE_3 = np.array(
  [
    (400e6, 1.92e19, 8.0e9), (1e9, 1.21e20, 20.2e9), (10e9, 1.23e22, 205.1e9),
    (67e9, 5.76e23, 1.5e12), (175e9, 3.85e24, 3.7e12), (280e9, 9.90e24, 5.9e12),
    (520e9, 3.43e25, 11.0e12), (1e12, 1.27e26, 21.2e12), (10e12, 1.30e28, 216.2e12),
  ]
)  # fmt: skip
TABLE_A3 = np.array(
  [
    (400e6, 1.84e19, 7.7e9), (1e9, 1.20e20, 20.0e9), (10e9, 1.32e22, 219.5e9),
    (67e9, 6.88e23, 1.7e12), (175e9, 4.54e24, 4.3e12), (280e9, 1.18e25, 7.1e12),
    (520e9, 4.19e25, 13.4e12), (1e12, 1.59e26, 26.5e12), (10e12, 1.75e28, 292.0e12),
  ]
)  # fmt: skip


def through(table) -> Allocation:
  """The power of C on which the parameters of a table's rows lie.

  Args:
    table: float64[rows, 3], parameters, FLOPs and tokens.
  """
  a, scale = np.polyfit(np.log(table[:, 1]), np.log(table[:, 0]), 1)
  return Allocation(float(np.exp(scale)), float(a))


HOFFMANN = Parametric(
  float(np.exp(6.0073404)), float(np.exp(6.0179186)), float(np.exp(0.5267228)),
  0.33917084, 0.2849083,
)  # fmt: skip
HOFFMANN_ROUNDED = Parametric(406.4, 410.7, 1.69, 0.34, 0.28)
EPOCH = Parametric(482.01, 2085.43, 1.8172, 0.3478, 0.3658)
# Pearce and Song took four digits of the unrounded numbers.
_FOUR_DIGITS = Parametric(406.4, 410.7, 1.6934, 0.3392, 0.2849)
# Of ln A, ln B, ln E, alpha and beta, from 1,000 bootstrap samples of the 240 points
# that Besiroglu et al. fitted, each fitted again. The samples have the standard errors
# A 123, B 1337, E 0.0264, alpha 0.0154 and beta 0.0206; the authors publish 124.5,
# 1293, 0.0257, 0.0154 and 0.0206.
EPOCH_COVARIANCE = np.array(
  [
    (6.69299e-2, -2.48838e-2, 2.22556e-3, 3.99021e-3, -1.25289e-3),
    (-2.48838e-2, 1.777357e-1, 3.80905e-3, -1.55054e-3, 8.69764e-3),
    (2.22556e-3, 3.80905e-3, 2.10144e-4, 1.31428e-4, 1.85655e-4),
    (3.99021e-3, -1.55054e-3, 1.31428e-4, 2.38186e-4, -7.81075e-5),
    (-1.25289e-3, 8.69764e-3, 1.85655e-4, -7.81075e-5, 4.25904e-4),
  ]
)
_CHINCHILLA_SPAN = {"n": (5.7e7, 1.62e10), "d": (8.2e8, 3.2e11), "c": (1.4e18, 1.3e22)}
_HOFFMANN, _EPOCH = "Hoffmann et al. 2022", "Besiroglu et al. 2024"
_PEARCE, _GEMSTONES = "Pearce and Song 2024", "McLeish et al. 2025"
_BODY = "without embeddings"

PUBLISHED = {
  "kaplan": Fitted(
    Allocation(1.3e9 / PF_DAY**0.73, 0.73, KAPLAN_C_MIN),
    "Kaplan et al. 2020, table 6: N = 1.3e9 C^0.73, C in PF-days", _BODY,
    {"n": (768, 1.5e9)},
  ),
  "kaplan-fixed-batch": Fitted(
    Allocation(1.6e9 / PF_DAY**0.88, 0.88, KAPLAN_C),
    "Kaplan et al. 2020, at a fixed batch: N = 1.6e9 C^0.88, C in PF-days", _BODY,
    {"n": (768, 1.5e9)},
  ),
  "kaplan-steps": Fitted(
    KAPLAN_NS, "Kaplan et al. 2020, table 3 and appendix B: optimum of L(N, S)", _BODY,
    {"n": (768, 1.5e9)},
  ),
  "chinchilla-1": Fitted(
    through(TABLE_3), f"{_HOFFMANN}, approach 1: a power through table 3",
    span=_CHINCHILLA_SPAN,
  ),
  "chinchilla-2": Fitted(
    through(TABLE_A3), f"{_HOFFMANN}, approach 2: a power through table A3",
    span=_CHINCHILLA_SPAN,
  ),
  "chinchilla-3": Fitted(
    HOFFMANN, f"{_HOFFMANN}, approach 3, unrounded", span=_CHINCHILLA_SPAN
  ),
  "chinchilla-3-rounded": Fitted(
    HOFFMANN_ROUNDED, f"{_HOFFMANN}, approach 3, rounded as published",
    span=_CHINCHILLA_SPAN,
  ),
  "epoch": Fitted(
    EPOCH, f"{_EPOCH}: approach 3 fitted again to Chinchilla's points",
    span=_CHINCHILLA_SPAN, covariance=EPOCH_COVARIANCE,
  ),
  "pearce-epoch": Fitted(
    WithoutEmbedding(EPOCH), f"{_PEARCE}, with the numbers of {_EPOCH}", _BODY
  ),
  "pearce-chinchilla": Fitted(
    WithoutEmbedding(_FOUR_DIGITS), f"{_PEARCE}, with those of {_HOFFMANN}", _BODY
  ),
  "gemstones": Fitted(
    Parametric(
      float(np.exp(5.3613398367)), float(np.exp(15.415994531)),
      float(np.exp(0.7622636901)), 0.2928686863, 0.712872206,
    ),
    f"{_GEMSTONES}, approach 3 on all models, delta 1e-3",
    span={"n": (4.8e7, 2.01e9), "d": (1e10, 1e11)},
  ),
  "gemstones-width-depth": Fitted(
    WidthDepth(
      1.0738807871, -0.2097602665, 10.9040518165, 0.205280776, 0.4741415976,
      0.5116481093, 0.3966401522, 6.2174536361, 0.372096494,
    ),
    f"{_GEMSTONES}, width and depth, up to 350 billion tokens, delta 1e-3",
    span={"n": (4.8e7, 2.01e9), "d": (1e10, 3.5e11)},
  ),
}  # fmt: skip
