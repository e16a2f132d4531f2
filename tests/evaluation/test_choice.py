"""Task choice: labels by likelihood and in answers, macro-F1, the row's own choices."""

import types

import numpy as np
import pytest
import torch

import jaxpeft
from jaxpeft import assets
from jaxpeft.data import formats
from jaxpeft.data import tokenizer as tokenizers
from jaxpeft.errors import InputError
from jaxpeft.evaluation import evaluate, f1, tasks
from jaxpeft.generation.ask import LocalAsk, Reply
from tests.support.families import save

ROWS = [
  dict(question="A dog?", answer="animal #### 1"),
  dict(question="A rose?", answer="plant #### 2"),
  dict(question="A cat?", answer="animal #### 1"),
  dict(question="Bread?", answer="food #### 3"),
]
WORD = r"(\w+) ####"


def make(rows=(), **options):
  known = vars(tasks.DEFAULTS) | options
  return tasks.make("choice", types.SimpleNamespace(**known), rows)


def test_labels_are_the_different_completions_or_what_is_found_in_them():
  assert make(ROWS).labels == ("animal #### 1", "food #### 3", "plant #### 2")
  task = make(ROWS, extract=WORD)
  assert task.labels == ("animal", "food", "plant")
  assert task.completions(ROWS[0]) == (
    " animal #### 1",
    " food #### 3",
    " plant #### 2",
  )
  assert task.prompt(ROWS[0]) == "Question: A dog?\nAnswer:"
  assert [task.gold(row) for row in ROWS] == ["animal", "plant", "animal", "food"]
  given = make(ROWS, extract=WORD, labels="food, plant,animal,thing")
  assert given.labels == ("food", "plant", "animal", "thing")
  assert given.completions(ROWS[0])[-2:] == (" animal #### 1", " thing")


def test_an_answers_label_is_what_it_says_or_names_first():
  task = make(ROWS, extract=WORD, choice="generation")
  assert task.completions(ROWS[0]) == ()
  for text, strict, flexible in (
    ("animal #### 1", "animal", "animal"),
    ("A plant, not an animal.", "", "plant"),
    ("stone #### 4", "", ""),
    ("animals and seafood", "", ""),  # labels are whole words
  ):
    assert task.choose(ROWS[0], text, []) == dict(strict=strict, flexible=flexible)
  assert task.score("A plant, not an animal.", ROWS[1]) == dict(
    strict=False, flexible=True
  )


def direct(theirs, ids, own):
  """Log-likelihood of the tokens `own` after `ids`, from transformers."""
  text = torch.tensor([ids + own])
  with torch.no_grad():
    logp = theirs(text).logits[0].double().log_softmax(-1)
  return sum(logp[len(ids) - 1 + i, t].item() for i, t in enumerate(own))


def test_scores_equal_a_direct_computation_with_transformers(tmp_path):
  theirs = save("llama", tmp_path, sizes=dict(vocab_size=512, num_hidden_layers=1))
  ours = jaxpeft.load(str(tmp_path), dtype="float32")
  words = tokenizers.load(assets.TINY)
  texts = [" animal", " plant", " a long label of many words"]
  rows = [
    dict(prompt=f"Q{i}: {'x ' * i}=", completion=texts[i % 3]) for i in range(6)
  ]  # fmt: skip
  got = evaluate.answers(LocalAsk(ours.transformer, ours.params, words), rows, "choice")
  for row, record in zip(rows, got.records, strict=True):
    ids = words.encode(row["prompt"], bos=True)
    want = {
      text: direct(theirs, ids, words.encode(row["prompt"] + text, bos=True)[len(ids):])
      for text in texts
    }  # fmt: skip
    assert record["logprobs"] == pytest.approx(want, abs=1e-3)
    # lm-evaluation-harness: acc takes the sum, acc_norm divides by the choice's length.
    normed = {text: x / len(text.strip()) for text, x in want.items()}
    assert record["found"] == dict(
      sum=max(want, key=want.get).strip(), norm=max(normed, key=normed.get).strip()
    )
    assert record["text"] == record["found"]["sum"]
  assert got.rule == "sum"
  assert {r["found"]["sum"] != r["found"]["norm"] for r in got.records} == {True}


def sklearn_macro_f1(y_true, y_pred):
  """f1_score(y_true, y_pred, average="macro", zero_division=0) by its definition."""
  scores = []
  for label in sorted(set(y_true) | set(y_pred)):
    tp = sum(a == b == label for a, b in zip(y_true, y_pred, strict=True))
    fp = sum(b == label != a for a, b in zip(y_true, y_pred, strict=True))
    fn = sum(a == label != b for a, b in zip(y_true, y_pred, strict=True))
    precision = tp / (tp + fp) if tp + fp else 0.0
    recall = tp / (tp + fn) if tp + fn else 0.0
    both = precision + recall
    scores.append(2 * precision * recall / both if both else 0.0)
  return np.mean(scores)


def test_macro_f1_is_sklearns_with_an_interval_around_it():
  rng = np.random.default_rng(0)
  labels = list("abcde")
  for size in (3, 40, 400):
    y, z = (rng.choice(labels, size).tolist() for _ in range(2))
    z = [a if x < 0.6 else b for a, b, x in zip(y, z, rng.random(size), strict=True)]
    counts = f1.confusion(y, z, labels)
    assert f1.macro_f1(counts) == pytest.approx(sklearn_macro_f1(y, z))
    low, high = f1.interval(counts)
    assert low <= f1.macro_f1(counts) <= high
  # As in scikit-learn, a label that is neither right nor found does not count.
  assert f1.macro_f1(f1.confusion(["a", "a"], ["a", "a"], ["a", "b"])) == 1
  # The interval's width is that of resampling the problems themselves.
  drawn = []
  for _ in range(500):
    some = rng.integers(0, 400, 400)
    drawn.append(sklearn_macro_f1([y[i] for i in some], [z[i] for i in some]))
  np.testing.assert_allclose(
    (low, high), np.quantile(drawn, (0.025, 0.975)), atol=0.012
  )


def test_texts_without_a_label_are_misses_and_confusions_are_counted():
  y, z = ["a", "a", "b", "b", "c"], ["a", "b", "", "b", ""]
  counts = f1.confusion(y, z, ["a", "b", "c"])
  # f1 of a: 2/3, of b: 1/2, of c: 0; "" is no label of its own.
  assert f1.macro_f1(counts) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
  assert f1.confused(counts, ["a", "b", "c"]) == [
    dict(gold="a", found="b", count=1),
    dict(gold="b", found="", count=1),
    dict(gold="c", found="", count=1),
  ]
  replies = iter(["animal ####", "stone", "plant ####", "food ####"])
  task = make(ROWS, extract=WORD, choice="generation")
  got = evaluate.answers(
    lambda requests: [Reply(next(replies), 1, 1) for _ in requests], ROWS, task
  )
  assert got.accuracy["strict"] == 0.5
  assert got.metrics()["macro_f1"] == pytest.approx((2 / 3 + 0 + 1) / 3)
  assert got.choice["confused"][0] == dict(gold="animal", found="plant", count=1)


OWN = dict(question="Capital of France?", choices=["Rome", "Paris", "Bonn"])


@pytest.mark.parametrize(
  ("row", "right"),
  [
    (OWN | dict(answer=1), "Paris"),
    (OWN | dict(answer="1"), "Paris"),
    (OWN | dict(answer="Paris"), "Paris"),
    (OWN | dict(answer="C"), "Bonn"),
    (OWN | dict(label=0), "Rome"),
    (
      dict(
        question="Capital of France?", answerKey="2",
        choices=dict(text=["Rome", "Paris", "Bonn"], label=["1", "2", "3"]),
      ),
      "Paris",
    ),
  ],
)  # fmt: skip
def test_a_row_may_bring_its_own_choices(row, right):
  task = make([row])
  assert task.gold(row) == right
  assert task.completions(row) == (" Rome", " Paris", " Bonn")
  assert task.labels == ()
  assert task.choose(row, "", [-9.0, -1.0, -4.0])["sum"] == "Paris"
  form, checked = formats.checked(row, "x")
  assert formats.prompt_and_completion(checked, form) == (
    "Question: Capital of France?\nAnswer:",
    f" {right}",
  )


def test_a_prompt_with_choices_is_taken_as_it_is():
  row = dict(prompt="2+2=", choices=["3", "4"], label=1)
  assert make([row]).completions(row) == ("3", "4")
  assert formats.prompt_and_completion(row, formats.checked(row, "x")[0]) == (
    "2+2=",
    "4",
  )


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: make(ROWS[:1]), "one label"),
    (lambda: make(ROWS, labels="animal"), "at least two different"),
    (lambda: make(ROWS, labels="a,a,b"), "at least two different"),
    (lambda: make(ROWS, choice="voting"), "eval.choice 'voting'"),
    (
      lambda: make(ROWS, extract=WORD, labels="animl,plant").gold(ROWS[0]),
      "Did you mean",
    ),
    (lambda: make([*ROWS, OWN | dict(answer=1)]), "row 5 of data.eval differs"),
    (
      lambda: make([dict(prompt="p", completion=f"{i}") for i in range(999)]),
      "over 200 different texts",
    ),
    (lambda: make([OWN | dict(answer=7)]).gold(OWN | dict(answer=7)), "index from 0"),
    (lambda: formats.checked(OWN | dict(answer="Berlin"), "F, line 2"), "F, line 2"),
    (lambda: make([OWN | dict(answer=1, choices=["a"])]), "2 to 200 texts"),
  ],
)  # fmt: skip
def test_what_is_no_choice_is_refused(call, message):
  with pytest.raises(InputError, match=message):
    call()
