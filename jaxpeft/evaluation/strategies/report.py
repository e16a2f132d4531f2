"""A strategy's answers to a task's problems, their scores, and what they cost."""

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxpeft.errors import InputError
from jaxpeft.evaluation import evaluate, strategies, tasks
from jaxpeft.evaluation.strategies import chains, recorded, roles
from jaxpeft.evaluation.strategies.chains import Options, Problems
from jaxpeft.generation.ask import Ask, Reply, Request, prompt_ids


class Report(NamedTuple):
  """What a strategy gave."""

  answers: evaluate.Answers
  counters: dict[str, dict[str, int]]  # see `chains.counters`, over all problems
  any_right: float | None = None  # share of problems with a right chain, of several

  def table(self) -> dict[str, str]:
    """{name: text} about the cost of a problem on average."""
    count, found = len(self.answers.records), {}
    for op, x in self.counters.items():
      calls, given, new = (x[k] / count for k in x)
      found[f"{op} per problem"] = (
        f"{calls:.2f} calls, {given:.1f} tokens in, {new:.1f} out"
      )
    if not found:
      return {}
    if self.any_right is not None:
      found["any chain is right"] = f"{self.any_right:.1%}"
    total = sum(x["output_tokens"] for x in self.counters.values())
    return found | {"output tokens": f"{total / count:.1f} per problem"}

  def settings(self, e) -> dict:
    """What a report says about the strategy of `config.eval`; {} without one."""
    if not e.strategy:
      return {}
    own = {key: e[key] for key in strategies.get(e.strategy).CHECKS}
    heats = list(e.temperatures)
    more = {} if self.any_right is None else dict(any_right=self.any_right)
    more |= dict(reward=e.reward) if e.reward else {}
    return more | dict(
      strategy=e.strategy, options=own, temperatures=heats, counters=self.counters
    )


def fits(config, model) -> Callable[[Request], bool]:
  """Whether a request's prompt and its longest answer fit into a model's positions."""
  most, usual = model.config.max_positions, config.eval.max_new_tokens

  def check(request: Request) -> bool:
    left = most - (request.max_new_tokens or usual)
    prompt = request.prompt
    if isinstance(prompt, str) and 4 * len(prompt) + 8 <= left:
      return True  # a token has at least a byte, and a character at most four
    return len(prompt_ids(model.tokenizer, prompt)) <= left

  return check


def problems(task, rows, shots=(), options=None) -> Problems:
  """The rows of a task for a strategy.

  Raises:
    InputError: the task scores completions, so that there is no text to think about.
  """
  if any(task.completions(row) for row in rows[:1]):
    raise InputError(
      "eval.strategy needs a task whose answers are generated; set "
      "eval.choice=generation, or leave eval.strategy empty"
    )
  return Problems(task, roles.of_task(task, options), rows, shots)


def answers(
  name: str,
  ask: Ask,
  rows: Sequence[dict],
  task,
  options: Options | None = None,
  shots: Sequence[Sequence[dict]] = (),
  room: Callable[[Request], bool] | None = None,
) -> Report:
  """Asks by a strategy, and scores its answers.

  A record has, besides those of `evaluate.answers`, confidence and chains: for each
  chain its calls [operation, text, output tokens]. `any_right` is what the best choice
  among the chains' ends would reach.

  Args:
    name: of the strategy.
    ask: the model that is asked.
    rows: problems of the task.
    task: from `tasks.make`.
    options: of the strategy.
    shots: for each row, the solved rows that a sample's prompt shows.
    room: from `fits`; None takes every request.
  """
  options = options or Options()
  rule = tasks.rule(task, options.rule)
  asked = problems(task, rows, shots)
  asked = asked._replace(fits=room) if room else asked
  chosen = strategies.get(name).run(asked, ask, options._replace(rule=rule))
  records, hits = [], 0
  for i, (row, one) in enumerate(zip(rows, chosen, strict=True)):
    reply = Reply(one.text, 0, 0)
    found = evaluate.record(task, row, task.prompt(row, asked.shown(i)), [reply], rule)
    calls = [[[x.op, x.text, x.tokens] for x in own.calls] for own in one.chains]
    records.append(found | dict(confidence=one.confidence, chains=calls))
    ends = dict.fromkeys(task.cut(x.cut(len(x.calls)).text) for x in one.chains)
    hits += found["correct"][rule] or any(task.score(x, row)[rule] for x in ends)
  several = any(len(one.chains) > 1 for one in chosen)
  share = hits / len(rows) if several else None
  calls = [x for one in chosen for own in one.chains for x in own.calls]
  calls += [x for one in chosen for x in one.more]
  most = max(map(len, shots), default=0)
  summary = evaluate.summary(task, records, rule, most)
  return Report(summary, chains.counters(calls), share)


def of_run(
  config,
  ask: Ask,
  model,
  rows,
  task,
  shots,
  folder: pathlib.Path,
  out=None,
  reward: Callable | None = None,
) -> Report:
  """The answers of a run by its `eval.strategy`; without one, one reply to each row.

  The replies to a strategy are kept in chains.jsonl in the run's directory, or in
  that of the report `out`, so that the same command goes on if it was stopped.

  Args:
    config: of the run.
    ask: its model, as it is asked.
    model: the same model, with parameters.
    rows, task, shots: see `answers`.
    folder: the run's directory.
    out: file of the report, or None.
    reward: the reward model that `eval.reward` names, see `strategies.rewards`.
  Raises:
    InputError: the task has no text to think about; the file belongs to something else.
  """
  e = config.eval
  if not e.strategy:
    return Report(evaluate.answers(ask, rows, task, e.answer, shots), {})
  path = out.with_suffix(".chains.jsonl") if out else folder / "chains.jsonl"
  options = strategies.options(e, reward)
  problems(task, rows, shots)
  kept = recorded.Recorded(ask, path, recorded.about(config, model))
  room = fits(config, model)
  return answers(e.strategy, kept, rows, task, options, shots, room)
