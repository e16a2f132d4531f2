"""The ends of chains as arrays, and the cells of a table that follow from them.

A cell is one strategy with one (m, n). Its accuracy is the mean over problems and over
random choices of m of the chains.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxpeft.evaluation.curves import calibration
from jaxpeft.evaluation.strategies.chains import Chain, Problems
from jaxpeft.evaluation.tasks.exact import INVALID

DRAWS = 20  # random choices of chains
_CHUNK = 2**24  # compared pairs at a time: bytes


class Ends(NamedTuple):
  """Chains cut after 0, 1, ..., n rounds: arrays [problems, chains, n + 1].

  `verified` and `corrected` are [..., n]: whether round j + 1 has that call.
  """

  answer: np.ndarray  # int: the same number is the same answer; -1 is none
  right: np.ndarray
  accepted: np.ndarray
  tokens: np.ndarray
  calls: np.ndarray
  verified: np.ndarray
  corrected: np.ndarray


class Cell(NamedTuple):
  """One strategy with one (m, n), for every problem: arrays [draws, problems]."""

  strategy: str
  m: int
  n: int
  right: np.ndarray
  confidence: np.ndarray
  tokens: np.ndarray
  calls: np.ndarray

  def summary(self) -> dict:
    """Its row in the table."""
    flat = self.confidence.ravel(), self.right.ravel()
    return dict(
      strategy=self.strategy, m=self.m, n=self.n,
      accuracy=float(self.right.mean()), tokens=float(self.tokens.mean()),
      calls=float(self.calls.mean()), auacc=calibration.auacc(*flat),
      ece=calibration.ece(*flat),
    )  # fmt: skip


def ends(
  problems: Problems, chains: Sequence[Sequence[Chain]], n: int, rule: str, per: int = 2
) -> Ends:
  """The ends of chains whose rounds have `per` calls, after 0 to n rounds."""
  task, shape = problems.task, (len(chains), len(chains[0]), n + 1)
  found = Ends(
    *(np.zeros(shape, dtype) for dtype in (int, bool, bool, int, int)),
    *(np.zeros((*shape[:2], n), bool) for _ in range(2)),
  )
  for p, own in enumerate(chains):
    row, numbers, seen = problems.rows[p], {INVALID: -1}, {}
    for i, chain in enumerate(own):
      for j in range(n + 1):
        end = chain.cut(1 + per * j)
        if end.text not in seen:
          text = task.cut(end.text)
          said = task.answer(text, rule)
          number = numbers.setdefault(said, len(numbers))
          seen[end.text] = number, task.score(text, row)[rule]
        found.answer[p, i, j], found.right[p, i, j] = seen[end.text]
        found.accepted[p, i, j] = end.accepted
        found.tokens[p, i, j], found.calls[p, i, j] = end.tokens, end.calls
        if j < n:
          found.verified[p, i, j] = len(chain.calls) > 1 + per * j
          found.corrected[p, i, j] = len(chain.calls) > 2 + per * j
  return found


def choices(problems: int, chains: int, draws: int = DRAWS, seed: int = 0):
  """int[draws, problems, chains]: orders of the chains; the first m are a choice."""
  keys = np.random.default_rng(seed).random((draws, problems, chains))
  return np.argsort(keys, axis=-1)


def vote(name: str, found: Ends, m: int, n: int, order, over: str = "all") -> Cell:
  """The vote among m chains of at most n rounds.

  Args:
    name: of the strategy.
    found: the chains' ends.
    m: chains.
    n: rounds.
    order: from `choices`.
    over: "all"; "verified_first", where accepted chains vote alone if there are any;
      "best_of_n", which is the same, but the confidence is the share of all chains.
  """
  pick = order[..., :m]

  def take(x):
    return np.take_along_axis(x[None, ..., n], pick, 2)

  answer, right, accepted = take(found.answer), take(found.right), take(found.accepted)
  if over == "all":
    votes = np.ones_like(accepted)
  else:
    votes = accepted | ~accepted.any(-1, keepdims=True)
  valid = votes & (answer >= 0)
  count = _counts(answer, valid)
  best = np.where(valid, count, -1).argmax(-1)  # the first of the largest
  # Where nobody has an answer, the first voter's text counts, which is wrong.
  best = np.where(valid.any(-1), best, votes.argmax(-1))[..., None]
  chosen = np.take_along_axis(right, best, -1)[..., 0]
  own = np.take_along_axis(answer, best, -1)
  if over == "best_of_n":
    share = (answer == own).mean(-1)
  else:
    share = np.where(own[..., 0] < 0, 0.0, ((answer == own) & votes).sum(-1))
    share = share / votes.sum(-1)
  tokens, calls = take(found.tokens).sum(-1), take(found.calls).sum(-1)
  return Cell(name, m, n, chosen, share, tokens, calls)


def likeliest(name: str, found: Ends, m: int, order, logprobs) -> Cell:
  """The sample of the largest score among m; `logprobs` is float[problems, chains]."""
  pick = order[..., :m]

  def take(x):
    return np.take_along_axis(x[None], pick, 2)

  answer, right = take(found.answer[..., 0]), take(found.right[..., 0])
  best = take(logprobs).argmax(-1)[..., None]
  share = (answer == np.take_along_axis(answer, best, -1)).mean(-1)
  tokens, calls = take(found.tokens[..., 0]), take(found.calls[..., 0])
  chosen = np.take_along_axis(right, best, -1)[..., 0]
  return Cell(name, m, 0, chosen, share, tokens.sum(-1), calls.sum(-1))


def weighted(name: str, found: Ends, m: int, order, rewards) -> Cell:
  """The vote among m samples with weights exp(reward), float[problems, chains]."""
  pick = order[..., :m]

  def take(x):
    return np.take_along_axis(x[None], pick, 2)

  answer, right = take(found.answer[..., 0]), take(found.right[..., 0])
  reward = take(np.asarray(rewards, float))
  weight = np.exp(reward - reward.max(-1, keepdims=True))
  mass = np.where(answer >= 0, _counts(answer, weight), -1.0)
  # Of the heaviest answer's samples the one of the largest reward. Sums of the same
  # weights may differ by their order.
  best = np.isclose(mass, mass.max(-1, keepdims=True), rtol=1e-9, atol=0)
  place = np.where(best, reward, -np.inf).argmax(-1)[..., None]
  share = np.take_along_axis(mass, place, -1)[..., 0] / weight.sum(-1)
  tokens, calls = take(found.tokens[..., 0]), take(found.calls[..., 0])
  chosen = np.take_along_axis(right, place, -1)[..., 0]
  return Cell(name, m, 0, chosen, np.maximum(share, 0.0), tokens.sum(-1), calls.sum(-1))


def any_right(found: Ends, m: int, order) -> np.ndarray:
  """bool[draws, problems]: whether the best choice among m samples is right."""
  some = np.take_along_axis(found.right[None, ..., 0], order[..., :m], 2)
  return np.any(some, axis=-1)


def _counts(answer, valid) -> np.ndarray:
  """Of the same shape: votes for each chain's answer.

  Args:
    answer: int[draws, problems, m].
    valid: bool, whether a chain votes; or float, the weight of its vote.
  """
  draws, problems, m = answer.shape
  step = max(1, _CHUNK // (problems * m * m))
  parts = []
  for start in range(0, draws, step):
    a, v = answer[start : start + step], valid[start : start + step]
    same = a[..., :, None] == a[..., None, :]
    parts.append((same * v[..., None, :]).sum(-1))
  return np.concatenate(parts)


def envelope(rows: Sequence[dict]) -> list[dict]:
  """The rows that no row with as few tokens beats, by tokens: compute-optimal ones."""
  best, out = -1.0, []
  for row in sorted(rows, key=lambda x: (x["tokens"], -x["accuracy"])):
    if row["accuracy"] > best:
      best = row["accuracy"]
      out.append(row)
  return out
