"""Confidence intervals of shares."""

from collections.abc import Hashable, Sequence

import numpy as np


def wilson(hits: int, count: int) -> tuple[float, float]:
  """The 95 % interval of the share hits / count. Source: Wilson 1927."""
  from scipy import stats  # takes half a second

  interval = stats.binomtest(hits, count).proportion_ci(0.95, "wilson")
  return float(interval.low), float(interval.high)


def of_groups(
  values: Sequence[float],
  groups: Sequence[Hashable],
  draws: int = 10_000,
  seed: int = 0,
) -> tuple[float, float]:
  """The 95 % interval of the mean of values in [0, 1], some of which belong together.

  Values of one group are drawn together, since they are alike. Where every value is a
  group of its own, and is 0 or 1, it is `wilson`'s; otherwise a bootstrap's.

  Args:
    values: e.g. whether a pair is right.
    groups: for each value what it belongs to, e.g. the pair's prompt.
    draws: bootstrap samples of groups.
    seed: of the samples.
  """
  names = {name: i for i, name in enumerate(dict.fromkeys(groups))}
  if len(names) == len(values) and set(values) <= {0, 1}:
    return wilson(round(sum(values)), len(values))
  place = [names[name] for name in groups]
  total = np.bincount(place, np.asarray(values, float), len(names))
  size = np.bincount(place, minlength=len(names))
  rng, means = np.random.default_rng(seed), []
  step = max(1, 2**22 // len(names))
  for start in range(0, draws, step):
    pick = rng.integers(0, len(names), (min(step, draws - start), len(names)))
    means.append(total[pick].sum(-1) / size[pick].sum(-1))
  low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
  return float(low), float(high)
