"""Extraction and scores as lm-evaluation-harness has them (its published regexes)."""

import json

import pytest

from jaxpeft.errors import InputError
from jaxpeft.evaluation.tasks import gsm8k

CASES = [  # text, strict, flexible
  ("so 5.\n#### 18", "18", "18"),
  ("#### 1,234.", "1,234.", "1,234."),
  ("#### -5\nTherefore 99", "-5", "99"),
  ("The answer is $12.50", "[invalid]", "$12.50"),
  ("**7**", "[invalid]", "7"),
  ("#### 3, no: #### 4", "3,", "4"),
  ("no number", "[invalid]", "[invalid]"),
  ("", "[invalid]", "[invalid]"),
  ("a 3. Then.", "[invalid]", "3."),
]


@pytest.mark.parametrize(("text", "strict", "flexible"), CASES)
def test_extraction(text, strict, flexible):
  assert gsm8k.strict(text) == strict
  assert gsm8k.flexible(text) == flexible


@pytest.mark.parametrize(
  ("text", "strict", "flexible"),
  [
    ("#### 1234", True, True),
    ("#### $1,234", False, True),
    ("#### 1,234", True, True),
    ("#### 1234.", True, True),
    ("#### 1234.0", False, False),
    ("#### 1234\nTherefore 99", True, False),
    ("The answer is 1234.", False, True),
  ],
)
def test_score(text, strict, flexible):
  row = {"question": "?", "answer": "it is <<1200+34=1234>>.\n#### 1,234"}
  assert gsm8k.score(text, row) == {"strict": strict, "flexible": flexible}


def test_what_follows_the_answer_is_cut():
  assert gsm8k.cut(" 5\n#### 5\n\nQuestion: next") == " 5\n#### 5\n\n"


def test_every_gold_answer_of_gsm8k_scores_and_mixed_formats_as_the_harness(data_dir):
  path = data_dir / "gsm8k" / "test.jsonl"
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert len(rows) == 1319
  for row in rows:
    assert all(gsm8k.score(row["answer"], row).values())
  # What the harness itself printed for eight answer formats in turn over this file.
  formats = [
    lambda a, n: a,
    lambda a, n: f"The answer is {n}.",
    lambda a, n: f"so ${n} in total",
    lambda a, n: f"#### {n}.00",
    lambda a, n: f"{n} apples, then 3 more",
    lambda a, n: "none",
    lambda a, n: f"#### {n}\nTherefore 99",
    lambda a, n: f"**{n}**",
  ]
  hits = {"strict": 0, "flexible": 0}
  for i, row in enumerate(rows):
    number = row["answer"].split("#### ")[1]
    text = formats[i % 8](row["answer"], number)
    for rule, hit in gsm8k.score(text, row).items():
      hits[rule] += hit
  assert hits["strict"] / 1319 == pytest.approx(0.2501895, abs=1e-7)
  assert hits["flexible"] / 1319 == pytest.approx(0.5026535, abs=1e-7)


def test_an_answer_without_its_number_is_refused():
  with pytest.raises(InputError, match="behind '#### '"):
    gsm8k.prompt(dict(question="How many?", answer="There are 3."))
