"""Preference: does the model score the better answer higher?

A row has a prompt with a chosen and a rejected answer, or a ranking, in any form of
`data.preferences`; or, as in RewardBench 2, lists of right and wrong texts as `chosen`
and `rejected`. Scores are rewards, or log-probabilities; see `judges`. Two rules:
  strict: equal scores are wrong, as in RewardBench.
  half: equal scores are half right.
Of a ranking the share of pairs in the right order counts. One right text among several
gets RewardBench 2's credit; several right ones count if all of them beat all others.
"""

import itertools
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxpeft.data import formats, preferences
from jaxpeft.errors import InputError
from jaxpeft.evaluation import intervals, rewardbench
from jaxpeft.evaluation.curves import calibration
from jaxpeft.evaluation.tasks.parts import Prompt
from jaxpeft.generation.ask import Conversation, plain_content

RULES = ("strict", "half")
_MOST = 64  # answers of a row with lists of texts


class Given(NamedTuple):
  """What a row has."""

  texts: list[tuple[Prompt, str]]  # (prompt, answer), the right ones or the best first
  right: int  # so many of them are right; 0 for a ranking
  tie: bool  # two answers are equal, so that nobody can prefer one


def make(options, rows: Sequence[dict] = ()):
  """This module: how answers are scored is an option of `judges`.

  Raises:
    InputError: there are shots.
  """
  if getattr(options, "shots", 0):
    raise InputError("task preference shows no solved rows; set eval.shots=0")
  return sys.modules[__name__]


def parse(row: dict) -> Given:
  """The answers of a row.

  Raises:
    InputError: the row has no preference.
  """
  if _texts(row.get("chosen")) and _texts(row.get("rejected")):
    return _lists(row, row["chosen"], row["rejected"])
  found = preferences.parse(row, "task preference: a row")
  if not found.chats:
    texts: list[tuple[Prompt, str]] = [(str(found.prompt), x) for x in found.answers]
  else:
    texts = []
    for *before, last in found.answers:
      assert isinstance(found.prompt, list)
      turns = Conversation([*found.prompt, *before], found.tools)
      texts.append((turns, plain_content(last)))
  return Given(texts, int(len(texts) == 2), found.tie)


def prompt(row: dict, shots: Sequence[dict] = ()) -> Prompt:
  """The prompt of the first answer; there are no shots.

  Raises:
    InputError: the row has no preference.
  """
  return parse(row).texts[0][0]


def requests(row: dict) -> list[tuple[Prompt, str]]:
  """(prompt, completion) of each answer that is scored."""
  return parse(row).texts


def completions(row: dict) -> tuple[str, ...]:
  """The answers."""
  return tuple(text for _, text in parse(row).texts)


def gold(row: dict) -> str:
  """The best answer."""
  return parse(row).texts[0][1]


def judge(row: dict, scores: Sequence[float]) -> dict:
  """What a record of a row has, given the scores of its answers.

  Returns:
    gold, correct {rule: credit from 0 to 1}, scores, and margin: how much higher the
    right ones are scored than the others, on average. `tie` is there if two answers are
    equal; such a row does not count. `subset` and `id` are those of the row.
  """
  given = parse(row)
  kept: dict = {
    k: row[k] for k in ("subset", "id") if isinstance(row.get(k), str | int)
  }
  first = given.right or 1
  if given.right:
    pairs = [(i, j) for i in range(first) for j in range(first, len(scores))]
  else:
    pairs = list(itertools.combinations(range(len(scores)), 2))
  gaps = [scores[i] - scores[j] for i, j in pairs]
  if given.right == 1 and len(scores) > 2:
    credit = dict.fromkeys(RULES, rewardbench.best_of(scores))
  elif given.right > 1:
    right = rewardbench.of_prompt(scores, given.right).right
    credit = dict.fromkeys(RULES, float(right))
    kept["right"] = given.right
  else:
    strict = float(np.mean([rewardbench.pair(x, 0) for x in gaps]))
    credit = dict(
      strict=strict, half=strict + float(np.mean([x == 0 for x in gaps])) / 2
    )
  kept["margin"] = float(np.mean(gaps))
  kept |= dict(tie=True) if given.tie else {}
  return dict(gold=gold(row), correct=credit, scores=list(scores)) | kept


def totals(records: Sequence[dict]) -> tuple[dict, dict, dict]:
  """({rule: accuracy}, {rule: 95 % interval}, more) of records of `judge`.

  The interval is over prompts: pairs of one prompt are drawn together.

  Returns:
    more: margin; ece, the calibration error of sigmoid(margin) as the chance to be
      right (pairs only); ties, rows that were left out; subsets {name: accuracy} and
      sections, if the rows have subsets.
  Raises:
    InputError: all rows are ties.
  """
  kept = [r for r in records if not r.get("tie")]
  if not kept:
    raise InputError("task preference: in all rows two answers are equal")
  groups = [r.get("prompt", number) for number, r in enumerate(kept)]
  accuracy, interval = {}, {}
  for rule in RULES:
    credit = [r["correct"][rule] for r in kept]
    accuracy[rule] = float(np.mean(credit))
    interval[rule] = intervals.of_groups(credit, groups)
  more: dict = dict(margin=float(np.mean([r["margin"] for r in kept])))
  pairs = [r for r in kept if len(r["scores"]) == 2]
  if pairs:
    more["ece"] = _ece([r["margin"] for r in pairs])
  if len(kept) < len(records):
    more["ties"] = len(records) - len(kept)
  return accuracy, interval, more | _benchmarks(kept)


def lines(more: dict) -> dict[str, str]:
  """{name: text} for people, of what `totals` gives."""
  found = {"margin": f"{more['margin']:.3f}"}
  if "ece" in more:
    found["calibration error"] = f"{more['ece']:.3f}"
  if "ties" in more:
    found["ties left out"] = f"{more['ties']}"
  for name, share in more.get("subsets", {}).items():
    found[f"subset {name}"] = f"{share:.1%}"
  for name, share in more.get("sections", {}).items():
    found[f"section {name}" if name != "overall" else name] = f"{share:.1%}"
  return found


def _benchmarks(kept: Sequence[dict]) -> dict:
  """The scores of subsets, and of RewardBench's sections, if the rows name any."""
  own: dict[str, list[dict]] = {}
  for r in kept:
    if "subset" in r:
      own.setdefault(str(r["subset"]), []).append(r)
  if not own:
    return {}
  subsets = {}
  for name, some in own.items():
    if name.lower() == "ties" and all("id" in r for r in some):
      found = {str(r["id"]): (r["scores"], r.get("right", 1)) for r in some}
      subsets[name] = rewardbench.ties(found)
    else:
      subsets[name] = float(np.mean([r["correct"]["strict"] for r in some]))
  sections = rewardbench.sections(subsets)
  overall = rewardbench.overall_2(subsets)
  sections |= {} if overall is None else dict(overall=overall)
  return dict(subsets=subsets) | (dict(sections=sections) if sections else {})


def _ece(margins: Sequence[float]) -> float:
  """Calibration of max(p, 1 - p), the confidence in what is preferred, p of sigmoid."""
  x = np.asarray(margins, float)
  confidence = 1 / (1 + np.exp(-np.minimum(np.abs(x), 700)))
  return calibration.ece(confidence, np.where(x == 0, 0.5, x > 0))


def _texts(value) -> bool:
  """Whether a value is a list of texts."""
  return (
    isinstance(value, list) and value != [] and all(isinstance(x, str) for x in value)
  )


def _lists(row: dict, chosen: list[str], rejected: list[str]) -> Given:
  """The answers of a row of RewardBench 2."""
  before = row.get("prompt")
  if not isinstance(before, str) or len(chosen) + len(rejected) > _MOST:
    raise InputError(
      f"task preference: a row with lists of texts needs a text as `prompt`, and at "
      f"most {_MOST} answers"
    )
  for name, texts in (("prompt", [before]), ("chosen", chosen), ("rejected", rejected)):
    for text in texts:
      formats.check_characters(text, name, "task preference: a row")
  wrong = any(x in chosen for x in rejected)
  return Given([(before, x) for x in [*chosen, *rejected]], len(chosen), wrong)
