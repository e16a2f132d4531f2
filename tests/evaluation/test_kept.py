"""Answers of a base that are kept for other runs, and the answers file of a run."""

import dataclasses
import json

import jax
import pytest

import jaxpeft
from jaxpeft.caches import disk
from jaxpeft.evaluation import answers_file, evaluate
from jaxpeft.evaluation.kept import KeptAsk
from jaxpeft.generation.ask import LocalAsk, Reply, Request
from jaxpeft.generation.sampling import Sampling


@dataclasses.dataclass(frozen=True)
class Counting(LocalAsk):
  """Counts how often the model is asked, and replies without one."""

  asked: list = dataclasses.field(default_factory=list)

  def __call__(self, requests):
    self.asked.append(len(requests))
    return [Reply(f"{r.prompt} é\n", 2, 3, -0.1) for r in requests]


@pytest.fixture
def ask(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXPEFT_CACHE", str(tmp_path))
  model = jaxpeft.load("embedded", dtype="float32")
  return Counting(model.transformer, model.params, model.tokenizer, 8)


REQUESTS = [Request("a"), Request("b", " c")]


def files():
  return sorted(disk.folder("answers").glob("*"))


def test_the_same_base_and_requests_are_asked_once(ask, capsys):
  first = KeptAsk(ask)(REQUESTS)
  assert capsys.readouterr().err == ""
  assert KeptAsk(ask)(REQUESTS) == first
  assert ask.asked == [2]
  (file,) = files()
  assert f"answers of the base are kept from an earlier run: {file}" in (
    capsys.readouterr().err
  )
  # The size of the batches and the progress bar change no answer.
  KeptAsk(dataclasses.replace(ask, batch_size=3, label="x"))(REQUESTS)
  assert ask.asked == [2]


def changed(params):
  """The parameters with one bit of one number changed."""
  name = "final_norm"
  x = params[name]
  bits = jax.lax.bitcast_convert_type(x, "uint32")
  bits = bits.at[x.shape[0] // 2].set(bits[x.shape[0] // 2] ^ 1)
  return params | {name: jax.lax.bitcast_convert_type(bits, x.dtype)}


@pytest.mark.parametrize(
  "change",
  [
    lambda a: dict(params=changed(a.params)),
    lambda a: dict(transformer=a.transformer.clone(dtype="bfloat16")),
    lambda a: dict(
      tokenizer=dataclasses.replace(a.tokenizer, eos_ids=(*a.tokenizer.eos_ids, 9))
    ),
    lambda a: dict(max_new_tokens=9),
    lambda a: dict(seed=1),
    lambda a: dict(sampling=Sampling(0.5)),
  ],
)
def test_what_may_change_an_answer_is_asked_again(ask, change):
  KeptAsk(ask)(REQUESTS)
  other = dataclasses.replace(ask, **change(ask))
  KeptAsk(other)(REQUESTS)
  assert ask.asked == [2, 2]
  for requests in (REQUESTS[:1], [Request("a"), Request("b", " d")], REQUESTS[::-1]):
    KeptAsk(ask)(requests)
  assert len(ask.asked) == 5
  assert len(files()) == 5


@pytest.mark.parametrize(
  "damage",
  [
    lambda text: text[: len(text) // 2],
    lambda text: text.replace("a \\u00e9", "b \\u00e9"),
    lambda text: text.replace('"sha256"', '"sha"'),
    lambda text: "[" * 100_000,
    lambda text: json.dumps(json.loads(text) | dict(replies=[])),
    lambda text: json.dumps(json.loads(text) | dict(replies=[[1, 2, 3, 4, 5]])),
    lambda text: "",
  ],
)
def test_a_damaged_entry_is_made_again(ask, damage):
  first = KeptAsk(ask)(REQUESTS)
  (file,) = files()
  whole = file.read_text()
  assert damage(whole) != whole
  file.write_text(damage(whole))
  assert KeptAsk(ask)(REQUESTS) == first
  assert ask.asked == [2, 2]
  assert file.read_text() == whole


def test_the_cache_is_bounded_and_may_be_off_or_unwritable(ask, monkeypatch):
  monkeypatch.setenv("JAXPEFT_ANSWERS_CACHE_GB", "2e-6")  # 2 kB
  for i in range(30):
    KeptAsk(ask)([Request(f"{i}")])
  assert 0 < disk.size(disk.folder("answers")) <= 2000
  monkeypatch.setenv("JAXPEFT_ANSWERS_CACHE_GB", "0")
  count = len(ask.asked)
  KeptAsk(ask)(REQUESTS)
  KeptAsk(ask)(REQUESTS)
  assert len(ask.asked) == count + 2
  monkeypatch.delenv("JAXPEFT_ANSWERS_CACHE_GB")
  monkeypatch.setenv("JAXPEFT_CACHE", "/dev/null/x")
  assert len(KeptAsk(ask)(REQUESTS)) == 2


def answers(*texts, gold="5"):
  rows = [
    dict(prompt=f"p{i}", gold=gold, text=text, correct=dict(strict=text == gold))
    for i, text in enumerate(texts)
  ]
  return evaluate.Answers("strict", {"strict": 0.5}, {"strict": (0.0, 1.0)}, rows, {})


def lines(folder):
  return [json.loads(x) for x in (folder / "answers.jsonl").read_text().splitlines()]


def test_a_runs_answers_are_all_written(tmp_path):
  answers_file.write(tmp_path, answers("4", "5"), None)
  assert lines(tmp_path)[1] == dict(
    prompt="p1", gold="5", base_text="5", base_correct=dict(strict=True)
  )
  for _ in range(2):  # also when the end of a run is repeated
    answers_file.write(tmp_path, None, answers("5", "é"))
    assert lines(tmp_path)[1] == dict(
      prompt="p1", gold="5", base_text="5", base_correct=dict(strict=True),
      adapted_text="é", adapted_correct=dict(strict=False),
    )  # fmt: skip
  # Other problems, a damaged file or none: only the adapted model's answers are known.
  answers_file.write(tmp_path, None, answers("5", "é", gold="6"))
  assert "base_text" not in lines(tmp_path)[0]
  (tmp_path / "answers.jsonl").write_text('{"prompt": ')
  answers_file.write(tmp_path, None, answers("5"))
  assert [x["adapted_text"] for x in lines(tmp_path)] == ["5"]
