"""What a policy, its reward model and its DPO reach; see preference_toy.py."""

import json
import pathlib
import statistics
from typing import Any

import numpy as np

from jaxpeft import experiment
from jaxpeft.data import prices, sources
from jaxpeft.evaluation import intervals, judges, tasks
from jaxpeft.evaluation.curves import paired
from jaxpeft.evaluation.curves import table as tables
from jaxpeft.evaluation.strategies import chains, report
from jaxpeft.evaluation.strategies.chains import Chain
from jaxpeft.generation.ask import LocalAsk, Request
from jaxpeft.generation.sampling import Sampling
from jaxpeft.training import log, workdir

SAMPLES = 16  # of a held-out problem
N, MAIN = (1, 4, 8, 16), 8  # samples to choose among; differences are taken at MAIN
COLD = (0.7, 0.5, 0.3)  # lower temperatures of the policy


def problems(args) -> tuple[list[dict], list[dict]]:
  """(problems for pairs, held-out problems); the policy has seen none of them."""
  some = sources.embedded("prices_pairs/train")[: args.drawn]
  return some, sources.embedded("prices/test")[: args.problems]


def draw(model, rows, copies: int, temperature: float, seed: int) -> list[list]:
  """[[reply] * copies], for each problem."""
  ask = LocalAsk(
    model.transformer, model.params, model.tokenizer, prices.NEW, Sampling(temperature),
    seed, 256, f"samples at temperature {temperature:g}",
  )  # fmt: skip
  replies = ask(
    [
      Request(prices.prompt(row), key=(i, j, 0))
      for i, row in enumerate(rows)
      for j in range(copies)
    ]
  )
  return [replies[i : i + copies] for i in range(0, len(replies), copies)]


def _share(values) -> dict:
  """A mean over problems and its interval."""
  return dict(value=float(np.mean(values)), interval=paired.interval(values))


def difference(after, before) -> dict:
  """The mean of a paired difference and its interval, over problems."""
  return _share(np.subtract(after, before))


def choices(asked, found, rewards, logps) -> dict:
  """Accuracy of every way to choose among N samples, and differences at N = MAIN."""
  ends = tables.ends(asked, found, 0, "strict")
  order = tables.choices(*ends.answer.shape[:2])
  out, cells = {}, {}
  for n in N:
    ways = cells[n] = {
      "vote": tables.vote("vote", ends, n, 0, order).right,
      "log p": tables.likeliest("log p", ends, n, order, logps).right,
      "reward": tables.likeliest("reward", ends, n, order, rewards).right,
      "weighted vote": tables.weighted("weighted", ends, n, order, rewards).right,
      "any": tables.any_right(ends, n, order),
    }
    out[str(n)] = {name: float(right.mean()) for name, right in ways.items()}
  best = {name: right.mean(0) for name, right in cells[MAIN].items()}
  for rival in ("vote", "log p"):
    out[f"reward - {rival}"] = difference(best["reward"], best[rival])
  return out


def pair_accuracy(held, by: dict[str, judges.Judge]) -> dict:
  """Accuracy of two judges on pairs, with intervals, and their paired difference."""
  task, right = tasks.make("preference"), {}
  out: dict[str, Any] = dict(count=len(held))
  for name, judge in by.items():
    both = [pair for row in held for pair in task.requests(row)]
    scores = np.reshape(judge.many(both), (-1, 2))
    records = [
      task.judge(row, own) | dict(prompt=row["prompt"])
      for row, own in zip(held, scores.tolist(), strict=True)
    ]
    shares, ranges, more = task.totals(records)
    out[name] = dict(value=shares["strict"], interval=ranges["strict"], **more)
    right[name] = [r["correct"]["strict"] for r in records]
  gaps = np.subtract(right["reward"], right["log p"]).tolist()
  interval = intervals.of_groups(gaps, [row["prompt"] for row in held])
  gap = dict(value=statistics.mean(gaps), interval=interval)
  return out | {"reward - log p": gap}


def measure(seed: int, at: dict[str, pathlib.Path], args) -> dict:
  """All measures of a seed, from its runs and files."""
  policy = experiment.load_run(at["policy"])
  reward = judges.reward_of(
    workdir.read_config(at["reward"]), experiment.load_run(at["reward"])
  )
  tuned = experiment.load_run(at["dpo"])
  old, new = (judges.Judge(model, "sum") for model in (policy, tuned))
  task, rows = tasks.make("prices"), problems(args)[1]
  drawn = draw(policy, rows, SAMPLES, 1.0, 10 * seed + 2)  # those of held.jsonl
  asked = report.problems(task, rows)
  found = [
    [Chain([chains.call(asked.roles, "sample", x)]) for x in own] for own in drawn
  ]
  flat = [(prices.prompt(row), x.text) for row, own in zip(rows, drawn, strict=True)
          for x in own]  # fmt: skip
  shape = (len(rows), SAMPLES)
  lines = lambda name: [json.loads(x) for x in at[name].read_text().splitlines()]  # noqa: E731
  pairs = lines("pairs")
  out: dict[str, Any] = dict(
    seed=seed,
    problems=len(rows),
    pairs=dict(count=len(pairs), problems=len({x["prompt"] for x in pairs})),
    held=pair_accuracy(lines("held"), {"reward": reward, "log p": old}),
    best_of=choices(
      asked, found, np.reshape(reward.many(flat), shape),
      np.reshape(judges.Judge(policy, "mean").many(flat), shape),
    ),
  )  # fmt: skip

  def right(replies) -> list[float]:
    """The share of right answers, for each problem."""
    return [statistics.mean(prices.right(row, x.text) for x in own)
            for row, own in zip(rows, replies, strict=True)]  # fmt: skip

  after = draw(tuned, rows, SAMPLES, 1.0, 10 * seed + 3)
  texts = [(prices.prompt(row), x.text) for row, own in zip(rows, after, strict=True)
           for x in own]  # fmt: skip
  gold = [(prices.prompt(row), f" {task.gold(row)}") for row in rows]
  kl = np.reshape(np.subtract(new.many(texts), old.many(texts)), shape).mean(-1)
  hits = {"before": right(drawn), "after": right(after)}
  gold_logp = {"before": old.many(gold), "after": new.many(gold)}
  greedy = {
    "before": right(draw(policy, rows, 1, 0.0, seed)),
    "after": right(draw(tuned, rows, 1, 0.0, seed)),
  }
  changed: dict[str, Any] = dict(kl=_share(kl))
  for name, x in (("sampled", hits), ("right_logp", gold_logp), ("greedy", greedy)):
    changed[name] = {key: _share(value) for key, value in x.items()}
    changed[name]["change"] = difference(x["after"], x["before"])
  cold = {}
  for heat in COLD:
    got = right(draw(policy, rows, SAMPLES, heat, 10 * seed + 4))
    cold[f"{heat:g}"] = _share(got) | dict(change=difference(got, hits["before"]))
  out |= dict(dpo=changed, temperature=cold)
  out["train_s"] = {
    x: log.read(at[x] / "metrics.jsonl")[-1]["wall_s"]
    for x in ("policy", "reward", "dpo")
  }
  return out
