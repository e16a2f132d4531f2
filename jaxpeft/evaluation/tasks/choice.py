"""Choice: one of several labels, by their likelihood or in a generated answer.

The labels are the different completions of the held-out data, or those of the option
`eval.labels`; or each row brings its own, see `data.choices`. With `eval.choice`
  likelihood: each label is scored as the completion of the prompt. Rules: "sum" takes
    the largest log-likelihood, and "norm" the largest one per character; they are acc
    and acc_norm of lm-evaluation-harness.
  generation: the model answers. Rules: "strict" wants the label as `exact` does;
    "flexible" takes the label that the text names first.
"""

import dataclasses
import re
from collections.abc import Sequence

from jaxpeft.data import choices
from jaxpeft.errors import InputError, unknown
from jaxpeft.evaluation.tasks import exact, extract, normalize, parts

BY = {"likelihood": ("sum", "norm"), "generation": ("strict", "flexible")}
RULES = tuple(rule for rules in BY.values() for rule in rules)
NONE = ""  # the label of a text that names none
_MOST = 200  # labels


@dataclasses.dataclass(frozen=True)
class Choice:
  """The task for some options and some data.

  Attributes:
    by: a key of `BY`.
    steps: names in `normalize.STEPS`, for comparing labels.
    pattern: `eval.extract`, which finds the label in a completion; or "".
    known: (label, completion) pairs; () if each row has its own.
  """

  by: str = "likelihood"
  steps: tuple[str, ...] = ("strip",)
  pattern: str = ""
  known: tuple[tuple[str, str], ...] = ()

  @property
  def RULES(self) -> tuple[str, ...]:
    """The rules that this way of choosing has."""
    return BY[self.by]

  @property
  def labels(self) -> tuple[str, ...]:
    """All labels, if they are the same for every row."""
    return tuple(label for label, _ in self.known)

  def prompt(self, row: dict, shots: Sequence[dict] = ()) -> parts.Prompt:
    """The prompt as it is trained on, after solved examples if there are `shots`."""
    return parts.with_shots(_split(row)[0], [_split(shot) for shot in shots])

  def completions(self, row: dict) -> tuple[str, ...]:
    """The texts to score, one for each label; () if an answer is generated."""
    return tuple(x for _, x in self._options(row)) if self.by == "likelihood" else ()

  def gold(self, row: dict) -> str:
    """The right label of a row.

    Raises:
      InputError: it is none of the labels.
    """
    labels = [label for label, _ in self._options(row)]
    given = _own(row)
    if given:
      return labels[given.right]
    found = self._label(_split(row)[1])
    if found not in labels:
      raise unknown("label: task choice: a row's right answer", found, labels)
    return found

  def cut(self, text: str) -> str:
    """All of the text: an expression may find the answer anywhere."""
    return text

  def answer(self, text: str, rule: str = "strict", labels: Sequence[str] = ()) -> str:
    """The label that a generated text gives, or `NONE`."""
    labels = labels or self.labels
    if rule == "strict":
      given = exact.answer_of(text, self.pattern)
      label = NONE if given is None else self._normal(given)
      return label if label in labels else NONE
    text = normalize.normalize(text, normalize.SQUAD)
    places = []
    for label in labels:
      bare = normalize.normalize(label, normalize.SQUAD)
      found = re.search(rf"(?<!\w){re.escape(bare)}(?!\w)", text) if bare else None
      if found:
        places.append((found.start(), -len(bare), label))
    return min(places)[2] if places else NONE

  def choose(self, row: dict, text: str, logprobs: Sequence[float]) -> dict[str, str]:
    """{rule: label} for a generated text, or for the scores of `completions`."""
    options = self._options(row)
    labels = [label for label, _ in options]
    if self.by == "generation":
      return {rule: self.answer(text, rule, labels) for rule in self.RULES}
    sizes = [len(completion.strip()) or 1 for _, completion in options]
    norms = [logprob / n for logprob, n in zip(logprobs, sizes, strict=True)]
    best = dict(sum=list(logprobs), norm=norms)
    return {rule: labels[x.index(max(x))] for rule, x in best.items()}

  def score(self, text: str, row: dict) -> dict[str, bool]:
    """Whether a generated text gives the row's label."""
    gold, labels = self.gold(row), [label for label, _ in self._options(row)]
    return {rule: self.answer(text, rule, labels) == gold for rule in self.RULES}

  def _options(self, row: dict) -> tuple[tuple[str, str], ...]:
    """(label, completion) of each label that the row may have."""
    given = _own(row)
    if given is None:
      return self.known
    return tuple((self._normal(x), x_text) for x, x_text in given.options())

  def _label(self, completion: str) -> str:
    return self._normal(exact.gold_of(completion, self.pattern, "choice"))

  def _normal(self, text: str) -> str:
    return normalize.normalize(text, self.steps)


def make(options, rows: Sequence[dict] = ()) -> Choice:
  """The task for the options `config.eval`, with the labels of some rows.

  Args:
    options: `config.eval`, or the like.
    rows: all held-out rows, from whose completions the labels are taken.
  Raises:
    InputError: an option is wrong, or the rows have one label or too many.
  """
  if options.choice not in BY:
    raise unknown("way to choose in eval.choice", options.choice, BY)
  extract.check(options.extract)
  steps = normalize.parse(options.normalize)
  task = Choice(options.choice, steps, options.extract)
  given = [x.strip() for x in options.labels.split(",") if x.strip()]
  if given and len({task._normal(x) for x in given}) < max(2, len(given)):
    raise InputError(
      f"eval.labels {options.labels!r} must be at least two different labels, with "
      "commas between them"
    )
  own = [_own(row) is not None for row in rows]
  if all(own):  # also without rows
    return dataclasses.replace(task, known=tuple((task._normal(x), x) for x in given))
  if any(own):
    raise InputError(
      f"task choice: row {own.index(not own[0]) + 1} of data.eval differs from the "
      "first one: either all rows have `choices`, or none"
    )
  found = {}
  for row in rows:
    completion = _split(row)[1]
    if not (given and len(found) > _MOST):
      found.setdefault(task._label(completion), completion)
    if not given and len(found) > _MOST:
      raise InputError(
        f"task choice: the right answers of data.eval are over {_MOST} different "
        f"texts, e.g. {completion[:60]!r}; use eval.task=exact, give eval.labels, or "
        "take the label from the text by eval.extract"
      )
  if given:
    space = " " * all(text.startswith(" ") for text in found.values())
    pairs = {task._normal(x): found.get(task._normal(x), space + x) for x in given}
    return dataclasses.replace(task, known=tuple(pairs.items()))
  if len(found) < 2:
    raise InputError(
      f"task choice: all rows of data.eval have one label, {next(iter(found))!r}; give "
      "eval.labels, with commas between them"
    )
  return dataclasses.replace(task, known=tuple(sorted(found.items())))


def _own(row: dict) -> choices.Choices | None:
  """The choices that a row brings itself."""
  return choices.parse(row, "task choice: a row") if choices.has(row) else None


def _split(row: dict) -> tuple[parts.Prompt, str]:
  given = _own(row)
  if given is None:
    return parts.split(row, "choice")
  return given.prompt(), given.options()[given.right][1]
