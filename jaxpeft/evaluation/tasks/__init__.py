"""Tasks: how a problem is asked, and how a reply is scored. One file each.

A module in `TASKS` has RULES, the names of all its ways to compare an answer, and
  make(options, rows) -> task     for `config.eval` and all held-out rows
A task, which may be the module itself, has
  RULES                           the rules it uses; the first one is "strict"
  prompt(row, shots=())           a text or a `Conversation`, after solved rows
  completions(row) -> texts       to score as completions; () asks for an answer
  cut(text) -> str                the reply up to where the task stops generating
  gold(row) -> str                the right answer; InputError if the row has none
  answer(text, rule) -> str       the extracted answer, for voting
  score(text, row) -> {rule: bool}
and, if it chooses among labels,
  labels                          of all rows; () if each row has its own
  choose(row, text, logprobs) -> {rule: label}
and, if it compares given answers, which `judges` score,
  requests(row) -> [(prompt, answer)]
  judge(row, scores) -> record    with gold and {rule: credit from 0 to 1} as "correct"
  totals(records) -> ({rule: accuracy}, {rule: interval}, more)
  lines(more) -> {name: text}     for people
"""

import types
from collections.abc import Sequence
from typing import Any

from jaxpeft.errors import unknown
from jaxpeft.evaluation.tasks import (
  budget,
  calendar,
  choice,
  exact,
  gsm8k,
  maths,
  meeting,
  preference,
  prices,
  sums,
  trip,
)

TASKS = {
  "gsm8k": gsm8k,
  "exact": exact,
  "choice": choice,
  "budget": budget,
  "sums": sums,
  "prices": prices,
  "preference": preference,
  "math": maths,
  "trip": trip,
  "meeting": meeting,
  "calendar": calendar,
}
DEFAULTS = types.SimpleNamespace(
  normalize="strip", extract="", labels="", choice="likelihood", own_shots=False
)


def get(name: str):
  """The module of that task.

  Raises:
    InputError: there is no such task.
  """
  if name not in TASKS:
    raise unknown("task", name, TASKS)
  return TASKS[name]


def make(name: str, options: Any = DEFAULTS, rows: Sequence[dict] = ()):
  """The task of that name.

  Args:
    name: a key of `TASKS`.
    options: `config.eval`, or another object with those fields that tasks read.
    rows: all held-out rows, where the task takes labels from them.
  Raises:
    InputError: there is no such task, or an option does not fit it or the rows.
  """
  return get(name).make(options, rows)


def rule(task, name: str) -> str:
  """The rule whose accuracy counts: "strict" is every task's first one.

  Raises:
    InputError: the task has no such rule.
  """
  if name in task.RULES:
    return name
  if name != "strict":
    raise unknown("answer rule in eval.answer", name, ("strict", *task.RULES))
  return task.RULES[0]
