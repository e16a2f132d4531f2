"""Task exact: SQuAD's normalization, answers that an expression finds, every form."""

import random
import re
import string
import threading
import types

import numpy as np
import pytest

from jaxpeft.errors import InputError
from jaxpeft.evaluation import evaluate, tasks
from jaxpeft.evaluation.tasks import exact, extract, normalize
from jaxpeft.generation.ask import Conversation, Reply


def make(normalize="strip", extract="", task="exact"):
  return tasks.make(task, types.SimpleNamespace(
    normalize=normalize, extract=extract, labels="", choice="likelihood"
  ))  # fmt: skip


def row(completion, prompt="p"):
  return dict(prompt=prompt, completion=completion)


def squad(s):
  """`normalize_answer` of SQuAD's evaluate-v1.1.py, as published."""

  def remove_articles(text):
    return re.sub(r"\b(a|an|the)\b", " ", text)

  def white_space_fix(text):
    return " ".join(text.split())

  def remove_punc(text):
    exclude = set(string.punctuation)
    return "".join(ch for ch in text if ch not in exclude)

  def lower(text):
    return text.lower()

  return white_space_fix(remove_articles(remove_punc(lower(s))))


def harness(text, ignore_case, ignore_punctuation):
  """What `exact_match` of lm-evaluation-harness compares."""
  predictions = np.asarray([text])
  if ignore_case:
    predictions = np.char.lower(predictions)
  if ignore_punctuation:
    table = string.punctuation.maketrans("", "", string.punctuation)
    predictions = np.char.translate(predictions, table=table)
  return str(predictions[0])


def texts(count=400):
  rng = random.Random(0)
  words = (
    "The a an An Theatre ant a. -the- cat, É 1,234 U.S. it's a-b «x» \t  \n".split(" ")
  )
  return [" ".join(rng.choices(words, k=rng.randrange(6))) for _ in range(count)]


def test_all_steps_are_squads_and_some_are_the_harness():
  for text in texts():
    assert normalize.normalize(text, normalize.SQUAD) == squad(text)
    for names, case, marks in (
      ("lower", True, False),
      ("punctuation", False, True),
      ("lower,punctuation", True, True),
    ):
      got = normalize.normalize(text, normalize.parse(names))
      assert got == harness(text, case, marks)
  assert normalize.parse(" articles, lower ") == ("lower", "articles")


@pytest.mark.parametrize(
  ("text", "gold", "options", "strict", "flexible"),
  [
    (" Paris", " Paris", {}, True, True),
    (" Paris\nQuestion: next", " Paris", {}, True, True),
    ("\n\n Paris ", "Paris", {}, True, True),
    ("the paris.", "Paris", {}, False, True),
    ("paris", "Paris", dict(normalize="lower"), True, True),
    ("paris ", "Paris", dict(normalize="lower"), False, True),
    (" x\n y\nmore", " x\n y", {}, True, True),  # as many lines as the right answer
    (" x", " x\n y", {}, False, False),
    ("", "Paris", {}, False, False),
    ("plant #### 2", "animal #### 1", dict(extract=r"(\w+) ####"), False, False),
    ("animal #### 7", "animal #### 1", dict(extract=r"(\w+) ####"), True, True),
    ("so an\nAnimal ####", "animal #### 1", dict(extract=r"(\w+) ####"), False, True),
    ("animal", "animal #### 1", dict(extract=r"(\w+) ####"), False, False),
    ("animal #### 7", "animal #### 1", dict(extract=r"(\w+) #### \d"), True, True),
    ("it is 12.", "12", dict(extract=r"\d+"), True, True),  # no group: the whole match
  ],
)
def test_scores(text, gold, options, strict, flexible):
  got = make(**options).score(text, row(gold))
  assert got == dict(strict=strict, flexible=flexible)


GPT = [{"from": "human", "value": "2+3?"}, {"from": "gpt", "value": "5"}]
PARTS = dict(role="assistant", content=[dict(type="text", text="5")])
TALK = [
  dict(role="system", content="Be brief."),
  dict(role="user", content="2+3?"),
  dict(role="assistant", content="5"),
]


@pytest.mark.parametrize(
  ("problem", "prompt", "gold"),
  [
    (dict(question="2+3?", answer="5"), "Question: 2+3?\nAnswer:", "5"),
    (row("5\n", "2+3="), "2+3=", "5"),
    (dict(instruction="Add.", input="2 3", output="5"), "### Input:\n2 3", "5"),
    (dict(messages=TALK), "system: Be brief.\nuser: 2+3?", "5"),
    (dict(conversations=GPT), "user: 2+3?", "5"),
    (dict(messages=[TALK[1], PARTS]), "user: 2+3?", "5"),
  ],
)
def test_every_form_of_row_has_a_prompt_and_an_answer(problem, prompt, gold):
  task = make()
  assert prompt in str(task.prompt(problem))
  assert task.gold(problem).strip() == gold
  assert task.score(gold, problem) == dict(strict=True, flexible=True)
  assert gold not in str(task.prompt(problem))


def test_solved_examples_stand_before_the_problem():
  task = make()
  one, two = row(" 5", "2+3="), row(" 9", "4+5=")
  assert task.prompt(two, [one]) == "2+3= 5\n\n4+5="
  talk = task.prompt(dict(messages=TALK), [dict(messages=TALK)])
  roles = [m["role"] for m in talk.messages]
  assert roles == ["system", "user", "assistant", "user"]


def test_an_evaluation_counts_and_keeps_gold_and_text():
  rows = [dict(messages=TALK), row("yes", "b"), row("no", "c")]
  asked = []

  def ask(requests):
    asked.extend(requests)
    return [Reply(text, 1, 1) for text in ("5", "Yes", "maybe")]

  got = evaluate.answers(ask, rows, make(), "flexible")
  assert got.accuracy == dict(strict=1 / 3, flexible=2 / 3)
  assert got.metrics()["accuracy"] == 2 / 3
  assert asked[0].prompt == Conversation(TALK[:2])
  assert [r["gold"] for r in got.records] == ["5", "yes", "no"]
  assert got.records[1]["correct"] == dict(strict=False, flexible=True)


EXPONENTIAL = r"(a+)+b"


def test_an_expression_that_takes_for_ever_is_stopped(monkeypatch):
  monkeypatch.setattr(extract, "_SECONDS", 0.1)
  assert extract.search(EXPONENTIAL, "a" * 60) is None
  assert make(extract=EXPONENTIAL).score("a" * 60, row("aab")) == dict(
    strict=False, flexible=False
  )
  monkeypatch.undo()
  assert extract.search(r"x", "y" * extract._LONGEST_TEXT + "x") is None
  found = []
  thread = threading.Thread(target=lambda: found.append(extract.search("b", "ab")))
  thread.start()
  thread.join()
  assert found == ["b"], "another thread has no timer, and needs none"


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: make(extract="("), "eval.extract '\\(' is no regular expression"),
    (lambda: make(extract="x" * 2000), "2000 characters"),
    (lambda: make(normalize="lowre"), "Did you mean 'lower'"),
    (lambda: make(extract="####").gold(row("none")), "finds nothing"),
    (lambda: make().gold(row(" \n")), "is empty"),
    (lambda: make().prompt(dict(messages=TALK[:2])), "must end with a text of"),
    (lambda: make().prompt(dict(messages=TALK[2:])), "must end with a text of"),
    (lambda: make().prompt(dict(text="x")), "task exact: a row: has text"),
    (lambda: tasks.rule(make(), "norm"), "eval.answer"),
  ],
)  # fmt: skip
def test_what_cannot_be_scored_is_refused(call, message):
  with pytest.raises(InputError, match=message):
    call()


def test_the_default_rule_is_every_tasks_first():
  assert tasks.rule(make(), "strict") == exact.RULES[0]
  assert tasks.rule(make(task="choice"), "strict") == "sum"
  assert tasks.rule(make(task="choice"), "norm") == "norm"
