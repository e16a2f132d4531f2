"""Differences between strategies at equal tokens, with paired bootstrap intervals."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxpeft.evaluation.curves.table import Cell


class Difference(NamedTuple):
  """Accuracy of a cell minus that of another strategy at as many tokens."""

  value: float
  low: float  # of the 95 % interval over the choice of problems
  high: float
  beyond: bool  # the other has no cell of as many tokens; its largest one counts


def at_tokens(cells: Sequence[Cell], tokens: float) -> tuple[np.ndarray, bool]:
  """(float[problems]: probability to be right at some tokens, whether beyond).

  Between two cells it is interpolated over the logarithm of tokens. Below the smallest
  cell that one counts.

  Args:
    cells: of one strategy, over the same problems.
    tokens: mean output tokens of a problem.
  """
  cells = sorted(cells, key=lambda x: x.tokens.mean())
  means = np.array([x.tokens.mean() for x in cells])
  right = np.stack([x.right.mean(0) for x in cells])
  if tokens >= means[-1]:
    return right[-1], bool(tokens > means[-1] * 1.05)
  if tokens <= means[0]:
    return right[0], False
  i = int(np.searchsorted(means, tokens, "right"))
  low, high = np.log(means[i - 1]), np.log(means[i])
  share = (np.log(tokens) - low) / (high - low)
  return (1 - share) * right[i - 1] + share * right[i], False


def difference(
  cell: Cell, others: Sequence[Cell], draws: int = 10_000, seed: int = 0
) -> Difference:
  """The cell minus another strategy at the cell's tokens.

  Args:
    cell: one cell.
    others: all cells of the other strategy, over the same problems.
    draws: bootstrap samples of problems.
    seed: of the samples.
  """
  theirs, beyond = at_tokens(others, float(cell.tokens.mean()))
  gap = cell.right.mean(0) - theirs
  low, high = interval(gap, draws, seed)
  return Difference(float(gap.mean()), low, high, beyond)


def interval(values, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
  """The 95 % percentile interval of the mean of float[N], resampled over N."""
  values = np.asarray(values, float)
  count, rng = len(values), np.random.default_rng(seed)
  step, means = max(1, 2**24 // count), []
  for start in range(0, draws, step):
    some = min(step, draws - start)
    means.append(values[rng.integers(0, count, (some, count))].mean(-1))
  low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
  return float(low), float(high)
