"""Macro-F1 with an interval, and which labels are confused.

Source: the definition of scikit-learn's f1_score(average="macro").
"""

import numpy as np

_DRAWS = 2000  # samples of the bootstrap


def confusion(golds: list[str], found: list[str], labels: list[str]) -> np.ndarray:
  """int[L, L + 1]: problems by right label and found label; the last column is none."""
  place = {label: i for i, label in enumerate(labels)}
  counts = np.zeros((len(labels), len(labels) + 1), np.int64)
  for gold, label in zip(golds, found, strict=True):
    counts[place[gold], place.get(label, len(labels))] += 1
  return counts


def macro_f1(counts: np.ndarray) -> np.ndarray:
  """float[...]: the mean of the labels' F1, of labels that are right or found at all.

  Args:
    counts: int[..., L, L + 1], from `confusion`.
  """
  hits = np.einsum("...ii->...i", counts[..., :-1])
  right, found = counts.sum(-1), counts[..., :-1].sum(-2)
  there = right + found  # F1 = 2 hits / (right + found)
  scores = np.divide(2 * hits, there, out=np.zeros(there.shape), where=there > 0)
  return scores.sum(-1) / np.maximum((there > 0).sum(-1), 1)


def interval(counts: np.ndarray, seed: int = 0) -> tuple[float, float]:
  """The 95 % interval of `macro_f1` over the choice of problems, by the bootstrap.

  Source: the percentile method, Efron 1979.
  """
  total = int(counts.sum())
  rng = np.random.default_rng(seed)
  shares = counts.reshape(-1) / total
  drawn = rng.multinomial(total, shares, _DRAWS).reshape(_DRAWS, *counts.shape)
  low, high = np.quantile(macro_f1(drawn), (0.025, 0.975))
  return float(low), float(high)


def confused(counts: np.ndarray, labels: list[str], most: int = 5) -> list[dict]:
  """The most frequent mistakes, [{"gold", "found", "count"}]; found "" is no label."""
  names = [*labels, ""]
  wrong = counts.copy()
  np.fill_diagonal(wrong[:, :-1], 0)
  order = np.argsort(-wrong, axis=None, kind="stable")[:most]
  places = [divmod(int(i), len(names)) for i in order]
  return [
    dict(gold=labels[i], found=names[j], count=int(wrong[i, j]))
    for i, j in places
    if wrong[i, j]
  ]
