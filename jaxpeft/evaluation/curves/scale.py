"""What every strategy reaches for its tokens: all cells of a grid, from one run.

Chains are run once at the largest m and n. Chains beyond the m-th only sample and
verify, for votes and best-of-N among more samples. All cells are cut from these.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxpeft.evaluation.curves import markov, paired, table
from jaxpeft.evaluation.curves.table import Cell
from jaxpeft.evaluation.strategies import (
  chains,
  greedy,
  rewards,
  sets_no_correct,
  sets_no_verify,
)
from jaxpeft.evaluation.strategies.chains import Chain, Options, Problems
from jaxpeft.generation.ask import Ask

_ABLATIONS = {
  "sets_no_verify": sets_no_verify.CYCLE,
  "sets_no_correct": sets_no_correct.CYCLE,
}


class Scale(NamedTuple):
  """The largest numbers of the grid."""

  m: int  # chains of verify and correct
  n: int  # rounds
  samples: int  # of votes and best-of-N; at least m
  ablations: bool = False


def run(problems: Problems, ask: Ask, scale: Scale, options: Options) -> dict:
  """The table, and all that belongs to it, as plain values; see docs/test_time.md.

  Args:
    problems: what is asked.
    ask: the model; `recorded.Recorded` makes this resumable.
    scale: the largest numbers.
    options: temperatures, rule and, where there is one, the reward model; m and n are
      not read.
  """
  heats, rule = options.temperatures, options.rule
  extra = max(0, scale.samples - scale.m)
  limits = [1 + 2 * scale.n] * scale.m + [1 + min(1, scale.n)] * extra
  found = chains.run(problems, ask, limits, temperatures=heats)
  once = [one.chains for one in greedy.run(problems, ask, options)]
  ends = table.ends(problems, [x[: scale.m] for x in found], scale.n, rule)
  samples = table.ends(problems, found, min(1, scale.n), rule, per=1)
  cells = [_one("greedy", table.ends(problems, once, 0, rule))]
  scored = options.reward and np.array(rewards.of_samples(problems, options, found))
  cells += _cells(ends, samples, _logprobs(found), scored, scale)
  for name, cycle in _ABLATIONS.items() if scale.ablations else ():
    per, most = len(cycle), 1 + len(cycle) * scale.n
    own = chains.run(problems, ask, [most] * scale.m, cycle, heats)
    cut = table.ends(problems, own, scale.n, rule, per)
    order = table.choices(*cut.answer.shape[:2])
    for m, n in _grid(scale.m, scale.n):
      cells += [table.vote(name, cut, m, n, order)] if n else []
  rows = _rows(cells)
  rates = markov.measure(ends, scale.n)
  calls = (x for some in found for chain in some for x in chain.calls)
  return dict(
    problems=len(problems.rows),
    scale=scale._asdict(),
    temperatures=list(heats),
    rows=rows,
    envelope=[dict(x) for x in table.envelope(rows)],
    any_right=_any_right(samples),
    rates=rates._asdict(),
    markov=markov.compare(ends, rates, scale.n),
    counters=chains.counters(calls),
  )


def _any_right(samples) -> dict[int, float]:
  """{samples: share of problems of which one is right}: no choice does better."""
  order = table.choices(*samples.answer.shape[:2])
  some = steps(samples.answer.shape[1])
  return {m: float(table.any_right(samples, m, order).mean()) for m in some}


def _cells(ends, samples, logprobs, scored, scale: Scale) -> list[Cell]:
  order = table.choices(*samples.answer.shape[:2])
  own = table.choices(*ends.answer.shape[:2])
  cells = []
  for m in steps(samples.answer.shape[1]):
    cells.append(table.vote("self_consistency", samples, m, 0, order))
    if scale.n:
      cells.append(table.vote("best_of_n", samples, m, 1, order, "best_of_n"))
    if logprobs is not None:
      name = "best_of_n, logprob"
      cells.append(table.likeliest(name, samples, m, order, logprobs))
    if scored is not None:
      name = "best_of_n, reward"
      cells.append(table.likeliest(name, samples, m, order, scored))
      cells.append(table.weighted("weighted_vote", samples, m, order, scored))
  for m, n in _grid(scale.m, scale.n):
    if n and m == 1:
      cells.append(table.vote("self_refine", ends, 1, n, own))
    elif n:
      cells.append(table.vote("sets", ends, m, n, own))
      first = "verified_first"
      cells.append(table.vote("sets, verified_first", ends, m, n, own, first))
  return cells


def steps(most: int) -> list[int]:
  """1, 2, 4, ... and the largest."""
  return sorted({*(2**i for i in range(most.bit_length()) if 2**i <= most), most})


def _grid(m: int, n: int) -> list[tuple[int, int]]:
  rounds = [x for x in (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32) if x < n] + [n]
  return [(i, j) for i in steps(m) for j in dict.fromkeys(rounds)]


def _one(name: str, ends) -> Cell:
  pick = [x[None, :, 0, 0] for x in ends[:5]]
  right, tokens, calls = pick[1], pick[3], pick[4]
  return Cell(name, 1, 0, right, np.ones(right.shape), tokens, calls)


def _logprobs(found: Sequence[Sequence[Chain]]) -> np.ndarray | None:
  """float[problems, chains] of the first samples; None if the model gives none."""
  all_ = [[chain.calls[0].logprob for chain in own] for own in found]
  known = all(x is not None for own in all_ for x in own)
  return np.array(all_, float) if known else None


def _rows(cells: Sequence[Cell]) -> list[dict]:
  """Summaries, with differences to vote and best-of-N at equal tokens."""
  of = {name: [x for x in cells if x.strategy == name] for name in _RIVALS}
  rows = []
  for cell in cells:
    row = cell.summary()
    row["accuracy_ci95"] = paired.interval(cell.right.mean(0))
    for name, short in _RIVALS.items():
      if of[name] and cell.strategy not in (name, "greedy"):
        row[f"minus_{short}"] = paired.difference(cell, of[name])._asdict()
    rows.append(row)
  return rows


_RIVALS = {"self_consistency": "vote", "best_of_n": "best_of_n"}


def text(result: dict) -> str:
  """The table for people, and the rates below it."""
  lines = [
    f"{'strategy':<22}{'m':>4}{'n':>4}{'tokens':>9}{'calls':>8}{'accuracy':>10}"
    f"{'AUACC':>7}{'ECE':>6}  minus vote at equal tokens"
  ]
  best = {(x["strategy"], x["m"], x["n"]) for x in result["envelope"]}
  for x in result["rows"]:
    mark = "*" if (x["strategy"], x["m"], x["n"]) in best else ""
    gap = x.get("minus_vote")
    more = ""
    if gap:
      more = f"{gap['value']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]"
      more += " (vote has fewer)" if gap["beyond"] else ""
    line = (
      f"{x['strategy']:<22}{x['m']:>4}{x['n']:>4}{x['tokens']:>9.1f}{x['calls']:>8.2f}"
      f"{x['accuracy']:>9.3f}{mark:<1}{x['auacc']:>7.3f}{x['ece']:>6.3f}  {more}"
    )
    lines.append(line.rstrip())
  lines.append("* compute-optimal: no cell of at most as many tokens is better")
  shares = "  ".join(f"{m}: {share:.3f}" for m, share in result["any_right"].items())
  lines.append(f"some sample is right, by the number of samples: {shares}")
  r = result["rates"]
  shares = "  ".join(
    f"{name} {r[name]:.3f} of {r['count'][name]}" for name in ("p0", "t", "f", "c", "k")
  )
  rounds = " ".join(f"{x:.3f}" for x in r["c_by_round"])
  lines += [f"rates: {shares}", f"c by round: {rounds}"]
  lines.append("one chain:  n  measured  predicted by round  pooled")
  for x in result["markov"]:
    lines.append(
      f"{x['n']:>13}{x['accuracy']:>10.3f}{x['by_round']:>20.3f}{x['pooled']:>8.3f}"
    )
  return "\n".join(lines)
