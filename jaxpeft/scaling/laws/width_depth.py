"""The law of width and depth of Gemstones, McLeish et al. 2025.

  ln L = ln( e^(c_w) / w^a_w + e^(c_d) / d^a_d + e^(c_n) / N^a_n + e^(c_t) / D^a_t
             + e^e ),

that is, a floor and one power each of the width w, the depth d (layers), the parameters
N and the tokens D. A variant has no term of N.

Source: McLeish et al. 2025, arXiv 2502.06857; the numbers are from the files
parameters_delta-3 and parameters_delta-4 of its repository (MIT).
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from jaxpeft.scaling.laws.power import FLOPS

_WIDTHS = np.unique(np.round(np.geomspace(1, 512, 90))) * 128.0  # heads of 128
_DEPTHS = np.unique(np.round(np.geomspace(1, 512, 120)))
VOCABULARY = 50_304


class Best(NamedTuple):
  """The best shape for a budget."""

  width: np.ndarray
  depth: np.ndarray
  n: np.ndarray
  d: np.ndarray


@dataclasses.dataclass(frozen=True)
class WidthDepth:
  """One power each of width, depth, parameters and tokens, above a floor.

  Attributes:
    c_width, c_depth, c_n, c_tokens: logarithms of the coefficients; c_n is -inf where
      the law has no term of the parameters.
    a_width, a_depth, a_n, a_tokens: the exponents.
    e: the logarithm of the floor.
  """

  c_width: float
  c_depth: float
  c_tokens: float
  a_width: float
  a_depth: float
  a_tokens: float
  e: float
  c_n: float = -np.inf
  a_n: float = 0.0

  def loss(self, width, depth, n, d):
    """The loss in nats; all arguments broadcast.

    Args:
      width: of the residual stream.
      depth: layers.
      n: parameters, embeddings included.
      d: tokens.
    """
    terms = np.broadcast_arrays(
      self.c_width - self.a_width * np.log(width),
      self.c_depth - self.a_depth * np.log(depth),
      self.c_n - self.a_n * np.log(n),
      self.c_tokens - self.a_tokens * np.log(d),
      self.e,
    )
    return np.exp(terms).sum(0)

  def shape(self, c) -> Best:
    """The best width (a multiple of 128) and depth for c FLOPs, with 6 N D = c.

    Args:
      c: float[...].
    """
    width, depth = (x.ravel() for x in np.meshgrid(_WIDTHS, _DEPTHS))
    n = parameters(width, depth)
    d = np.asarray(c, np.float64)[..., None] / FLOPS / n
    best = self.loss(width, depth, n, d).argmin(-1)
    d = np.take_along_axis(d, best[..., None], -1)[..., 0]
    return Best(width[best], depth[best], n[best], d)

  def optimum(self, c):
    """(N, D) of the best shape for c FLOPs."""
    best = self.shape(c)
    return best.n, best.d

  def frontier(self, c):
    """The loss in nats of the best shape for c FLOPs."""
    best = self.shape(c)
    return self.loss(best.width, best.depth, best.n, best.d)


def parameters(width, depth, vocabulary: int = VOCABULARY):
  """Parameters of a Gemstone of this width (a multiple of 128) and depth.

  Heads of 128, two queries for each key and value, a gated feed-forward part of four
  times the width, two norms in a layer and one at the end, and an output head of its
  own.
  """
  keys_and_values = 2 * np.floor(width / 128 / 2) * 128
  attention = width * (width + keys_and_values) + width * width
  return depth * (attention + 12 * width**2 + 2 * width) + width * (2 * vocabulary + 1)
