"""Roles: what a model is asked in each operation of a strategy, for one task.

A task may have `roles(options) -> Roles`. Otherwise it gets `Paper`: the prompts of
SETS [Chen et al. 2025, arXiv 2501.19306] in their structure, mostly in our words.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, Protocol

from jaxpeft.evaluation.tasks.parts import Prompt
from jaxpeft.generation.ask import Conversation, plain_content

OPERATIONS: tuple[str, ...] = ("sample", "verify", "correct")
History = Sequence[tuple[str, str]]  # (solution, analysis), oldest first

_LABEL = re.compile(r"\A\s*(?:TASK|QUESTION|PROBLEM|Q):\s*", re.IGNORECASE)
_CUE = re.compile(r"\s*\b(?:SOLUTION|ANSWER|A):\s*\Z", re.IGNORECASE)
_VERDICT = re.compile(
  r"proposed\s+solution\s+is\s+[*_`\"']*(in|not\s+)?correct\b", re.IGNORECASE
)
_CHOSEN = re.compile(r"\bsolution\s+[*_`\"'(#]*(\d{1,4})\b", re.IGNORECASE)


class Roles(Protocol):
  """What a model is asked in each operation of a strategy.

  Attributes:
    stop: {operation: texts that end what the model says}.
    limit: {operation: most new tokens}; None is eval.max_new_tokens.
  """

  @property
  def stop(self) -> dict[str, tuple[str, ...]]: ...

  @property
  def limit(self) -> dict[str, int | None]: ...

  def sample(self, row: dict, shots: Sequence[dict] = ()) -> Prompt:
    """Asks for a solution, after solved rows."""
    ...

  def verify(self, row: dict, history: History, answer: str) -> Prompt:
    """Asks whether a solution is right; `history` are those before it."""
    ...

  def correct(self, row: dict, history: History) -> Prompt:
    """Asks for a better solution than all those of the history."""
    ...

  def verdict(self, text: str) -> bool:
    """Whether an analysis calls its solution right; False if it does not say."""
    ...

  def answer(self, text: str) -> str:
    """The solution in what was sampled or corrected, as later prompts show it."""
    ...


@dataclasses.dataclass(frozen=True)
class Paper:
  """The prompts of SETS for a task that has none of its own.

  The problem is what the task asks without shots. The task may say more:
    EXPERT    what the model is an expert at, e.g. "planning trips"
    WHAT      "TASK" (the default), or "QUESTION" where there are no constraints to list
    STOP      texts that end a solution

  Attributes:
    task: from `tasks.make`.
  """

  task: Any

  @property
  def stop(self) -> dict[str, tuple[str, ...]]:
    """A solution ends where the task says; an analysis at the end token."""
    own = tuple(getattr(self.task, "STOP", ()))
    return dict(sample=own, verify=(), correct=own)

  @property
  def limit(self) -> dict[str, int | None]:
    """No limits but eval.max_new_tokens."""
    return dict.fromkeys(OPERATIONS)

  def sample(self, row: dict, shots: Sequence[dict] = ()) -> Prompt:
    """The task's own prompt, with the wish for constraints or steps first."""
    return extended(self.task.prompt(row, shots), self._say("sample"))

  def verify(self, row: dict, history: History, answer: str) -> Prompt:
    """The problem and the last solution. The history is not shown."""
    parts = [f"{self._what}:\n{self._problem(row)}", f"PROPOSED SOLUTION:\n{answer}"]
    return self._ask(row, "verify", parts, "ANALYSIS:")

  def correct(self, row: dict, history: History) -> Prompt:
    """The problem and all solutions with their analyses."""
    parts = [f"{self._what}:\n{self._problem(row)}"]
    for answer, analysis in history:
      parts.append(f"PROPOSED SOLUTION:\n{answer}")
      parts += [f"ANALYSIS:\n{analysis.strip()}"] if analysis.strip() else []
    return self._ask(row, "correct", parts, "NEW SOLUTION:")

  def choose(self, row: dict, answers: Sequence[str]) -> Prompt:
    """Asks which of several solutions is best, by its number from 1."""
    parts = [f"{self._what}:\n{self._problem(row)}"]
    parts += [f"SOLUTION {i}:\n{answer}" for i, answer in enumerate(answers, 1)]
    return self._ask(row, "choose", parts, "ANALYSIS:")

  def verdict(self, text: str) -> bool:
    """The last "the proposed solution is correct" or "... incorrect" counts."""
    found = _VERDICT.findall(text)
    return bool(found) and not found[-1]

  def chosen(self, text: str, count: int) -> int | None:
    """The number, from 0, of the solution that a text names last; None if none."""
    found = [int(x) - 1 for x in _CHOSEN.findall(text)]
    found = [x for x in found if 0 <= x < count]
    return found[-1] if found else None

  def answer(self, text: str) -> str:
    """The text up to where the task stops generating."""
    return self.task.cut(text).strip()

  @property
  def _what(self) -> str:
    return getattr(self.task, "WHAT", "TASK")

  def _say(self, operation: str) -> str:
    """The instruction of an operation."""
    expert = getattr(self.task, "EXPERT", "solving problems")
    what, each = self._what, "" if self._what == "TASK" else "_steps"
    return _WORDS.get(operation + each, _WORDS[operation]).format(
      expert=expert, what=what
    )

  def _problem(self, row: dict) -> str:
    """The problem as the task asks it, without labels such as "Question:"."""
    prompt = self.task.prompt(row)
    if isinstance(prompt, Conversation):
      users = [m for m in prompt.messages if m["role"] == "user"]
      return "\n\n".join(plain_content(m) for m in users)
    return _CUE.sub("", _LABEL.sub("", prompt)).strip()

  def _ask(self, row: dict, operation: str, parts: list[str], cue: str) -> Prompt:
    """A text that ends with a cue, or a turn of the user where the task has turns."""
    text = "\n\n".join([self._say(operation), *parts])
    prompt = self.task.prompt(row)
    if isinstance(prompt, str):
      return f"{text}\n\n{cue}\n"
    system = [m for m in prompt.messages if m["role"] == "system"]
    return prompt._replace(messages=[*system, dict(role="user", content=text)])


def of_task(task, options: Any = None) -> Roles:
  """The roles of a task: its own, or `Paper`."""
  return task.roles(options) if hasattr(task, "roles") else Paper(task)


def extended(prompt: Prompt, words: str) -> Prompt:
  """A prompt with more words at its end: before a cue such as "Answer:", if any."""
  if isinstance(prompt, str):
    cue = _CUE.search(prompt)
    before = prompt[: cue.start()] if cue else prompt.rstrip()
    after = cue[0].strip() if cue else ""
    return f"{before}\n\n{words}\n{after}"
  *before, last = prompt.messages
  content = last.get("content")
  if isinstance(content, list):
    content = [*content, dict(type="text", text=words)]
  else:
    content = f"{content or ''}\n\n{words}"
  return prompt._replace(messages=[*before, {**last, "content": content}])


_GIVEN = "You are an expert at {expert}. You are given a {what}"
_VERDICT_LINE = (
  'Write a line of the form "The proposed solution is correct" or "The proposed '
  'solution is incorrect" at the end of your response based on your analysis.'
)
_WORDS = {
  "sample": (
    "Please first list all the constraints in the problem and then output a final "
    "solution that satisfies all the constraints."
  ),
  "sample_steps": (
    "Please think step by step and then output a final solution to the problem."
  ),
  "verify": (
    _GIVEN + " and a PROPOSED SOLUTION. Your job is to:\n"
    "1. List all constraints in the {what}.\n"
    "2. Verify if the PROPOSED SOLUTION satisfies each of the constraints with "
    "justifications.\n3. " + _VERDICT_LINE
  ),
  "verify_steps": (
    _GIVEN + " and a PROPOSED SOLUTION. Your job is to:\n"
    "1. Break down the {what} and the PROPOSED SOLUTION into their components.\n"
    "2. Think step by step to verify each component of the PROPOSED SOLUTION.\n"
    "3. " + _VERDICT_LINE
  ),
  "correct": (
    _GIVEN + ". You are also given pairs of (PROPOSED SOLUTION, ANALYSIS). Your job "
    "is to outline your step-by-step thought process for deriving a new solution, and "
    "then to output the new solution in the form of the proposed ones."
  ),
  "choose": (
    _GIVEN + " and several numbered solutions. Your job is to compare them, and to "
    'find the best one. Write a line of the form "The best solution is SOLUTION 1", '
    "with its number, at the end of your response."
  ),
}
