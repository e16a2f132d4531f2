"""The rates of a chain's operations, and what they predict.

p0  a sample is right               c  a refused wrong solution becomes right
t   a right solution is accepted    k  a refused right solution stays right
f   a wrong solution is accepted
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxpeft.evaluation.curves.table import Ends


class Rates(NamedTuple):
  """The rates, each with the number of cases that it is measured on."""

  p0: float
  t: float
  f: float
  c: float
  k: float
  c_by_round: list[float]
  count: dict[str, int]
  count_c_by_round: list[int]


def predict(
  p0: float, t: float, f: float, c: float | Sequence[float], k: float, n: int
) -> tuple[float, float]:
  """(probability that a chain of n rounds ends right, its mean number of calls).

  Args:
    p0, t, f, c, k: rates. c may be one for each round; the last one counts on.
    n: most rounds.
  """
  by_round = [float(c)] if isinstance(c, int | float) else list(c)
  right, wrong, done, calls = p0, 1 - p0, 0.0, 1.0
  for j in range(n):
    now = by_round[min(j, len(by_round) - 1)] if by_round else 0.0
    refused_right, refused_wrong = right * (1 - t), wrong * (1 - f)
    calls += right + wrong + refused_right + refused_wrong
    done += right * t
    right = refused_right * k + refused_wrong * now
    wrong = refused_right * (1 - k) + refused_wrong * (1 - now)
  return done + right, calls


def measure(ends: Ends, n: int) -> Rates:
  """The rates in chains of at most n rounds.

  A rate without cases is 0; its count says so.
  """
  cases = {name: [0, 0] for name in ("p0", "t", "f", "c", "k")}
  rounds = [[0, 0] for _ in range(n)]

  def add(name, hits):
    cases[name][0] += int(hits.sum())
    cases[name][1] += hits.size

  add("p0", ends.right[..., 0].ravel())
  for j in range(n):
    right = ends.right[..., j]
    began = ends.verified[..., j]  # verified in round j + 1, whatever the verdict
    yes = ends.accepted[..., j + 1] & began
    add("t", yes[began & right])
    add("f", yes[began & ~right])
    gone_on = ends.corrected[..., j]
    after = ends.right[..., j + 1]
    add("k", after[gone_on & right])
    now = after[gone_on & ~right]
    add("c", now)
    rounds[j] = [int(now.sum()), now.size]
  share = {name: hits / max(1, total) for name, (hits, total) in cases.items()}
  while rounds and not rounds[-1][1]:
    rounds.pop()
  return Rates(
    **share,
    c_by_round=[hits / max(1, total) for hits, total in rounds],
    count={name: total for name, (_, total) in cases.items()},
    count_c_by_round=[total for _, total in rounds],
  )


def compare(ends: Ends, rates: Rates, n: int) -> list[dict]:
  """For 0 to n rounds of one chain: measured and predicted accuracy, and calls."""
  p0, t, f, c, k = rates[:5]
  rows = []
  for j in range(n + 1):
    pooled, calls = predict(p0, t, f, c, k, j)
    row = dict(n=j, accuracy=float(np.mean(ends.right[..., j])))
    row |= dict(calls=float(np.mean(ends.calls[..., j])))
    row |= dict(pooled=pooled, pooled_calls=calls)
    rows.append(row | dict(by_round=predict(p0, t, f, rates.c_by_round, k, j)[0]))
  return rows
