"""Whether confidence says which answers are right."""

import numpy as np


def auacc(confidence, correct) -> float:
  """Area under accuracy over coverage.

  For every level of confidence, coverage is the share of answers of at least that
  level, and accuracy their share of right ones. Shares of votes tie a lot: answers of
  one level are one point. Left of the first point the curve is level.

  Args:
    confidence: float[N].
    correct: bool[N], or a probability of being right.
  """
  confidence, correct = np.asarray(confidence, float), np.asarray(correct, float)
  levels, place = np.unique(-confidence, return_inverse=True)
  covered = np.cumsum(np.bincount(place, minlength=len(levels)))
  right = np.cumsum(np.bincount(place, correct, minlength=len(levels)))
  x = np.concatenate([[0.0], covered / len(correct)])
  y = (right / covered)[np.maximum(np.arange(len(x)) - 1, 0)]
  return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))


def accuracy_at(confidence, correct) -> np.ndarray:
  """float[N]: accuracy of the 1, 2, ..., N most confident answers."""
  order = np.argsort(-np.asarray(confidence, float), kind="stable")
  right = np.asarray(correct, float)[order]
  return np.cumsum(right) / np.arange(1, len(right) + 1)


def ece(confidence, correct, bins: int = 10) -> float:
  """Expected calibration error, with bins of equal width; 1 is in the last one."""
  confidence, correct = np.asarray(confidence, float), np.asarray(correct, float)
  # A share such as 0.7 must not fall below the border 7/10 by rounding.
  place = np.minimum((confidence * bins + 1e-9).astype(int), bins - 1)
  gap = np.bincount(place, confidence - correct, minlength=bins)
  return float(np.abs(gap).sum() / len(correct))
