"""Rows to batches: formats, masks, packing, order; and the embedded problems."""

import dataclasses
import json

import numpy as np
import pytest
import tokenizers

import jaxpeft
from jaxpeft import assets
from jaxpeft.data import answers, batches, encode, sources, tokenizer, toy

ROWS = [
  {"prompt": "Say 12: ", "completion": "twelve"},
  {"question": "1+1?", "answer": "2"},
  {"instruction": "Add.", "input": "3, 4", "output": "7"},
  {
    "messages": [
      {"role": "user", "content": "Hi?"},
      {"role": "assistant", "content": "Yes."},
    ]
  },
]


@pytest.fixture(scope="module")
def tok():
  return tokenizer.load(assets.TINY)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: next(iter(row)))
def test_the_loss_is_on_the_completion_only(tok, row):
  (example,) = encode.encode([row], tok, 256, "completion").examples
  learned = tok.decode(example.tokens[example.supervised], skip_special=False)
  want = {"prompt": "twelve", "question": " 2", "instruction": "7", "messages": " Yes."}
  assert learned == want[next(iter(row))] + "<eos>"
  text = tok.decode(example.tokens, skip_special=False)
  assert text.startswith("<bos>")
  assert "<bos>" not in text[5:]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: next(iter(row)))
def test_loss_on_all_leaves_out_the_first_token_only(tok, row):
  (example,) = encode.encode([row], tok, 256, "all").examples
  assert example.supervised.sum() == len(example.tokens) - 1


def test_any_text_survives_the_tokenizer(tok):
  for text in ("Größe 3½ €", "日本語\n\n\t x", "1234567890", "Anna has 23+14="):
    assert tok.decode(tok.encode(text)) == text
  assert len(tok.encode("1234567")) == 7, "digits are single tokens"


def test_truncation_is_counted_and_what_remains_must_teach(tok):
  rows = [
    {"prompt": "a" * 50, "completion": "b"},
    {"prompt": "a", "completion": "b" * 9},
  ]
  got = encode.encode(rows, tok, 8, "completion")
  assert (len(got.examples), got.truncated, got.dropped) == (1, 2, 1)
  assert "2 cut to max_tokens; 1 left out" in got.summary("x")
  with pytest.raises(jaxpeft.InputError, match="no supervised token in 1 examples"):
    encode.encode(rows[:1], tok, 8, "completion")


def test_answers_that_say_nothing_are_counted(tok):
  rows = [dict(prompt="a", completion=text) for text in ("", " \n", "b")]
  got = encode.encode(rows, tok, 8, "completion")
  assert got.counts.silent == 2
  assert "; 2 have a blank answer" in got.summary("x")


def test_conversations_without_an_answer_are_counted_and_must_not_be_all(tok):
  asked = dict(messages=[dict(role="user", content="Hi?")])
  replied = [dict(role="assistant", content=text) for text in ("", "Yes.")]
  rows = [dict(messages=[*asked["messages"], reply]) for reply in replied]
  got = encode.encode([asked, *rows], tok, 99, "completion")
  assert (got.counts.unanswered, got.counts.silent, got.dropped) == (1, 1, 1)
  assert "1 conversations have no turn of the assistant" in got.summary("x")
  with pytest.raises(jaxpeft.InputError, match=r"row 1: .* no turn of the assistant"):
    encode.encode([asked] * 2, tok, 99, "completion")


CHATML = (
  "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>\n{% endfor %}"
  "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TURNS = [
  {"role": "user", "content": "Hi?"},
  {"role": "assistant", "content": "Yes 1."},
  {"role": "user", "content": "And?"},
  {"role": "assistant", "content": "No 2."},
]


def chat(tok, source):
  ids, learn = answers.chat(
    tokenizer.dataclasses.replace(tok, chat_template=source), TURNS
  )
  return tuple(
    tok.decode(x, skip_special=False) for x in (np.array(ids)[np.array(learn)], ids)
  )


def test_a_template_without_special_tokens_is_supervised_to_the_end_of_the_turn(tok):
  learned, text = chat(tok, CHATML)
  assert learned == "Yes 1.</>\nNo 2.</>\n<eos>", "the last turn gets an end token"
  assert text.startswith("<user>Hi?</>\n<assistant>Yes 1.</>")


def test_generation_marks_decide_where_there_are_any(tok):
  marked = CHATML.replace(
    "{{ m.content }}",
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}",
  )
  assert chat(tok, marked)[0] == "Yes 1.No 2.<eos>"
  assert chat(tok, marked)[1] == chat(tok, CHATML)[1]


def test_masks_equal_transformers(tok, tmp_path):
  transformers = pytest.importorskip("transformers")
  marked = tok.chat_template
  theirs = transformers.PreTrainedTokenizerFast(
    tokenizer_file=str(assets.TINY / "tokenizer.json"),
    bos_token="<bos>",
    eos_token="<eos>",
    pad_token="<pad>",
  )
  want = theirs.apply_chat_template(
    TURNS, chat_template=marked, return_assistant_tokens_mask=True, return_dict=True
  )
  ids, learn = answers.chat(tok, TURNS)
  assert ids == want["input_ids"]
  assert [int(x) for x in learn] == want["assistant_masks"]


def test_a_completion_follows_its_prompt_as_in_one_text(tok):
  """Llama 2's tokenizer starts every text with a space, also one that has one."""
  pieces = ["<unk>", "\u2581", "\u2581\u2581", "A", ":", "7", "\u25817"]
  merges = [("\u2581", "\u2581"), ("\u2581", "7")]
  vocab = {piece: i for i, piece in enumerate(pieces)}
  core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges, unk_token="<unk>"))
  core.normalizer = tokenizers.normalizers.Sequence(
    [
      tokenizers.normalizers.Prepend("\u2581"),
      tokenizers.normalizers.Replace(" ", "\u2581"),
    ]
  )
  llama = dataclasses.replace(tok, core=core, add_bos=False, eos_ids=())
  for prompt, completion, want in (
    ("A:", " 7", ["\u2581", "A", ":", "\u25817"]),
    ("A:", "7", ["\u2581", "A", ":", "7"]),
    (
      "A: ",
      "7",
      ["\u2581", "A", ":", "\u2581", "\u25817"],
    ),  # or the prompt would differ
  ):
    row = dict(prompt=prompt, completion=completion)
    (example,) = encode.encode([row], llama, 64, "completion").examples
    assert [pieces[i] for i in example.tokens] == want
    start = len(core.encode(prompt).ids)
    assert example.tokens[:start].tolist() == core.encode(prompt).ids
    assert example.supervised.tolist() == [i >= start for i in range(len(want))]


def test_token_0_may_end_a_text(tmp_path):
  for file in assets.TINY.iterdir():
    if file.name in tokenizer.FILES:
      (tmp_path / file.name).write_bytes(file.read_bytes())
  (tmp_path / "generation_config.json").write_text('{"eos_token_id": 0}')
  assert 0 in tokenizer.load(tmp_path).eos_ids


def examples(tok, count=40):
  rows = sources.embedded("two_step/train")[:count]
  return encode.encode(rows, tok, 128, "completion").examples


def test_packing_keeps_every_token_once_and_apart(tok):
  items = examples(tok)
  rows = batches.pack(items, 200)
  assert sum(len(row) for row in rows) == len(items)
  got = batches.to_arrays(rows, 200)
  assert (got["segment"] > 0).sum() == sum(len(e.tokens) for e in items)
  assert got["weights"].sum() == sum(e.supervised.sum() for e in items)
  for r, row in enumerate(rows):
    for s, example in enumerate(row, 1):
      here = got["segment"][r] == s
      np.testing.assert_array_equal(got["tokens"][r, here], example.tokens)
      np.testing.assert_array_equal(got["position"][r, here], np.arange(here.sum()))
      np.testing.assert_array_equal(got["targets"][r, here][:-1], example.tokens[1:])
      assert got["weights"][r, here][-1] == 0, "the next example is not its target"


def test_best_fit_fills_rows_well(tok):
  rng = np.random.default_rng(0)
  items = [
    encode.Example(np.zeros(n, np.int32), np.ones(n, bool))
    for n in rng.integers(5, 60, 500)
  ]
  rows = batches.pack(items, 128)
  assert sum(len(e.tokens) for row in rows for e in row) / (128 * len(rows)) > 0.98


def test_batches_are_a_function_of_seed_and_step(tok):
  items = examples(tok)
  a, b = (batches.make(items, 200, 4, True, seed=3) for _ in range(2))
  for step in (7, 0, 31):
    for name, x in a[step].items():
      np.testing.assert_array_equal(x, b[step][name])
  other = batches.make(items, 200, 4, True, seed=4)
  assert any((a[s]["tokens"] != other[s]["tokens"]).any() for s in range(3))


def test_an_epoch_shows_every_example_once_and_the_next_in_another_order(tok):
  items = examples(tok)
  made = batches.make(items, 128, 4, False, seed=0)
  epochs = [
    [
      made[s]["tokens"][r].tobytes()
      for s in range(e * 10, e * 10 + 10)
      for r in range(4)
    ]
    for e in range(2)
  ]
  assert sorted(epochs[0]) == sorted(epochs[1])
  assert len(set(epochs[0])) == 40
  assert epochs[0] != epochs[1]


def test_preview_marks_what_is_learned(tok):
  made = batches.make(examples(tok, 1), 128, 1, True, seed=0)
  shown = batches.preview(made[0], tok, color=False)
  assert shown.startswith("<bos>Question: ")
  assert "Answer:[[ " in shown
  assert shown.endswith("<eos>]]")


# ---- the embedded problems -------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2])
def test_problems_are_correct_and_splits_are_disjoint(steps):
  import re

  def numbers(row):
    sums = re.findall(r"<<(\d+)([+-]\d+)=(\d+)>>", row["answer"])
    for a, change, result in sums:
      assert int(a) + int(change) == int(result)
      assert 1 <= int(result) <= 99
    assert row["answer"].endswith(f"#### {sums[-1][2]}")
    return (sums[0][0], *(change for _, change, _ in sums))

  train = {numbers(r) for r in toy.problems(steps, "train", 3000, seed=1)}
  test = {numbers(r) for r in toy.problems(steps, "test", 500, seed=2)}
  assert not train & test


def test_problems_depend_on_the_seed_only():
  assert toy.problems(2, "train", 5, 0) == toy.problems(2, "train", 5, 0)
  assert toy.problems(2, "train", 5, 0) != toy.problems(2, "train", 5, 1)


def test_real_gsm8k_is_read_and_encoded_without_loss(tok, data_dir):
  rows = sources.read(str(data_dir / "gsm8k" / "test.jsonl"))
  assert len(rows) == 1319
  got = encode.encode(rows, tok, 4096, "completion")
  assert (len(got.examples), got.truncated) == (1319, 0)
  text = tok.decode(got.examples[5].tokens)
  assert text == f"Question: {rows[5]['question']}\nAnswer: {rows[5]['answer']}"


# ---- bad rows --------------------------------------------------------------------


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ('{"prompt": "a", "completion": "b"}\n{"prompt": ', "line 2: not JSON"),
    ('\n{"prompt": "a"}', "line 2: has prompt; expected one of"),
    (
      '{"prompt": "a", "completion": 3}',
      "line 1: `completion` must be a text, not int",
    ),
    ("[1]", "line 1: holds a list"),
    ('{"messages": [{"role": "user"}]}', "line 1: `messages` must be a list"),
    ("", "has no rows"),
  ],
)
def test_a_bad_line_is_named(tmp_path, text, message):
  path = tmp_path / "d.jsonl"
  path.write_text(text)
  with pytest.raises(jaxpeft.InputError, match=message):
    sources.read(str(path))


def test_line_separators_inside_texts_split_nothing(tmp_path):
  row = {"prompt": "a\u2028b", "completion": "c\x85d"}
  (tmp_path / "d.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n")
  assert sources.read(str(tmp_path / "d.jsonl")) == [row]
