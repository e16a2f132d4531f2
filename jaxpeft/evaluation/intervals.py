"""Confidence intervals of shares."""

from scipy import stats


def wilson(hits: int, count: int) -> tuple[float, float]:
  """The 95 % interval of the share hits / count. Source: Wilson 1927."""
  interval = stats.binomtest(hits, count).proportion_ci(0.95, "wilson")
  return float(interval.low), float(interval.high)
