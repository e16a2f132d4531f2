"""Confidence intervals of shares."""


def wilson(hits: int, count: int) -> tuple[float, float]:
  """The 95 % interval of the share hits / count. Source: Wilson 1927."""
  from scipy import stats  # takes half a second

  interval = stats.binomtest(hits, count).proportion_ci(0.95, "wilson")
  return float(interval.low), float(interval.high)
