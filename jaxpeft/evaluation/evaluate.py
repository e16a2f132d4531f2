"""Accuracy of answers, and teacher-forced loss."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxpeft import console
from jaxpeft.data import batches
from jaxpeft.evaluation import f1, tasks
from jaxpeft.evaluation.intervals import wilson
from jaxpeft.generation.ask import Ask, Reply, Request
from jaxpeft.objectives import Objective
from jaxpeft.parallel import distributed
from jaxpeft.training import step


class Answers(NamedTuple):
  """Answers to a task's problems, and their scores."""

  rule: str  # the one that counts
  accuracy: dict[str, float]  # by rule
  interval: dict[str, tuple[float, float]]  # 95 %, over the choice of problems only
  records: list[dict]  # see `record`
  choice: dict  # for labels: macro_f1, its interval, and confused; otherwise {}
  shots: int = 0  # solved rows in a prompt
  more: dict = {}  # noqa: RUF012  what else the task has measured; nobody changes it

  def metrics(self) -> dict:
    """What metrics.jsonl has about them: numbers by name, of the rule that counts."""
    names = ("macro_f1", "macro_f1_ci95")
    more = {name: self.choice[name] for name in names if name in self.choice}
    more |= dict(shots=self.shots) if self.shots else {}
    more |= self.more
    share, interval = self.accuracy[self.rule], self.interval[self.rule]
    return dict(accuracy=share, accuracy_ci95=interval) | more

  def logged(self, prefix: str = "") -> dict:
    """`metrics` and the first three texts, as "samples", under prefixed names."""
    texts = [r["text"] for r in self.records[:3] if "text" in r]
    found = self.metrics() | dict(samples=texts)
    return {f"{prefix}{name}": value for name, value in found.items()}


def answers(
  ask: Ask,
  rows: Sequence[dict],
  task,
  rule: str = "strict",
  shots: Sequence[Sequence[dict]] = (),
) -> Answers:
  """Asks for one answer to every row, and scores it.

  Args:
    ask: the model that is asked.
    rows: problems of the task.
    task: from `tasks.make`; or a name in `tasks.TASKS`, with its default options and
      the labels of these rows.
    rule: whose accuracy counts, see `tasks.rule`.
    shots: for each row, the solved rows that its prompt shows; () shows none.
  """
  task = tasks.make(task, rows=rows) if isinstance(task, str) else task
  rule, shots = tasks.rule(task, rule), shots or [()] * len(rows)
  asked = [_requests(task, row, own) for row, own in zip(rows, shots, strict=True)]
  replies = iter(ask([request for some in asked for request in some]))
  records = [
    record(task, row, some[0].prompt, [next(replies) for _ in some], rule)
    for row, some in zip(rows, asked, strict=True)
  ]
  return summary(task, records, rule, max(map(len, shots), default=0))


def summary(task, records: list[dict], rule: str, shots: int = 0) -> Answers:
  """The scores of records, see `record`; `shots` are those in a prompt."""
  if hasattr(task, "totals"):
    shares, ranges, more = task.totals(records)
    return Answers(rule, shares, ranges, records, {}, shots, more)
  rules = records[0]["correct"].keys()
  hits = {rule: sum(r["correct"][rule] for r in records) for rule in rules}
  return Answers(
    rule,
    {rule: hit / len(records) for rule, hit in hits.items()},
    {rule: wilson(hit, len(records)) for rule, hit in hits.items()},
    records,
    _choice(records, sorted(getattr(task, "labels", ())), rule),
    shots,
  )


def _requests(task, row: dict, shots: Sequence[dict]) -> list[Request]:
  """One request for an answer, or one for each completion to score."""
  if hasattr(task, "requests"):
    return [Request(prompt, text) for prompt, text in task.requests(row)]
  prompt, given = task.prompt(row, shots), task.completions(row)
  return [Request(prompt, text) for text in given] or [Request(prompt)]


def record(task, row: dict, prompt, replies: list[Reply], rule: str) -> dict:
  """prompt, gold, text, and {rule: whether it is correct}.

  A task with labels adds {rule: label} as "found", and the log-likelihoods in nats of
  the completions, if they were scored. The text is then that of the label. A task that
  judges given answers has no text; its `judge` says what else there is.
  """
  if hasattr(task, "judge"):
    scores = [reply.logprob for reply in replies]
    return dict(prompt=str(prompt)) | task.judge(row, scores)
  gold = task.gold(row)
  if not hasattr(task, "choose"):
    text = task.cut(replies[0].text)
    correct = task.score(text, row)
    return dict(prompt=str(prompt), gold=gold, text=text, correct=correct)
  scores = [reply.logprob for reply in replies if reply.logprob is not None]
  found = task.choose(row, task.cut(replies[0].text), scores)
  text = found[rule] if scores else task.cut(replies[0].text)
  correct = {rule: label == gold for rule, label in found.items()}
  made = dict(prompt=str(prompt), gold=gold, text=text, correct=correct, found=found)
  by_text = {r.text: r.logprob for r in replies}
  return made | (dict(logprobs=by_text) if scores else {})


def _choice(records: list[dict], labels: list[str], rule: str) -> dict:
  """Macro-F1 and confusions of a task whose labels are those of every row."""
  if not labels:
    return {}
  golds = [record["gold"] for record in records]
  counts = f1.confusion(golds, [r["found"][rule] for r in records], labels)
  return dict(
    macro_f1=float(f1.macro_f1(counts)),
    macro_f1_ci95=f1.interval(counts),
    confused=f1.confused(counts, labels),
  )


def held_out(config, net, objective: Objective, examples):
  """params -> mean loss of a run's held-out examples, see `means`."""
  found = held_out_means(config, net, objective, examples)
  return lambda params: found(params)["loss"]


def held_out_means(config, net, objective: Objective, examples):
  """params -> {"loss" and other means} of a run's held-out examples, see `means`."""
  t, fn = config.train, step.make_eval(net, objective)
  rows, tokens = t.batch_size // t.accumulate, config.data.max_tokens
  return lambda params: means(fn, objective, params, examples, tokens, rows)


def loss(
  evaluate, objective: Objective, params, examples, max_tokens: int, batch_size: int
) -> float:
  """The mean loss of `means`, which has the same arguments."""
  return means(evaluate, objective, params, examples, max_tokens, batch_size)["loss"]


def means(
  evaluate, objective: Objective, params, examples, max_tokens: int, batch_size: int
) -> dict[str, float]:
  """Mean teacher-forced loss over everything that the objective takes a loss on.

  Args:
    evaluate: from `training.step.make_eval`.
    objective: makes arrays of packed examples.
    params: adapted or not.
    examples: list of Example; the last batch is filled up with empty rows.
    max_tokens: tokens of a packed row.
    batch_size: rows of a batch.
  Returns:
    "loss", and the means of the objective's metrics, e.g. "accuracy".
  """
  rows = [*batches.pack(examples, max_tokens)]
  rows += [[] for _ in range(-len(rows) % batch_size)]
  sums = []
  starts = range(0, len(rows), batch_size)
  for i in console.progress(starts, "held-out loss", len(starts), "batches"):
    batch = objective.batch(rows[i : i + batch_size], max_tokens)
    sums.append(evaluate(params, batch))
    # Several processes must run programs with collectives in one order. A single one
    # waits for the batch before, so that the progress is that of the device.
    ahead = 0 if distributed.count() > 1 else 1
    jax.block_until_ready(sums[max(0, len(sums) - 1 - ahead)])
  names = ("loss", *sums[0].metrics)
  numbers = [[found.weight, found.total, *found.metrics.values()] for found in sums]
  weight, *totals = np.sum(np.asarray(numbers, float), axis=0)
  return {name: x / weight for name, x in zip(names, totals, strict=True)}
