"""Preferences in every form, as groups and as arrays; bad rows are one clear line."""

import json

import numpy as np
import pytest

from jaxpeft import assets, config, experiment, objectives
from jaxpeft.data import batches, encode, examples, pairs, preferences, sources
from jaxpeft.data import tokenizer as tokenizers
from jaxpeft.errors import InputError

ASK = dict(role="user", content="Add 1 and 2.")
TALK = [ASK, dict(role="assistant", content="3"), dict(role="user", content="And 4?")]
GOOD, BAD = (dict(role="assistant", content=x) for x in ("It is 7.", "It is 8, or so."))
PAIR = dict(prompt="Q: 1 + 2\nA:", chosen=" 3", rejected=" 4 or 5")
RANKED = dict(prompt="Q: 5 + 2\nA:", ranked=[" 7", " 6", " 9 or 10"])
TEXTS = "\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: And?\n\nAssistant:"


@pytest.fixture(scope="module")
def tok():
  return tokenizers.load(assets.TINY)


@pytest.mark.parametrize(
  ("row", "prompt", "answers"),
  [
    (PAIR, PAIR["prompt"], (" 3", " 4 or 5")),
    (RANKED, RANKED["prompt"], (" 7", " 6", " 9 or 10")),
    (RANKED | dict(ranked=json.dumps(RANKED["ranked"])), RANKED["prompt"], None),
    # The HH data's form; the last mark that both texts share ends the prompt.
    (dict(chosen=TEXTS + " yes", rejected=TEXTS + " yet"), TEXTS, (" yes", " yet")),
    (
      dict(chosen=TEXTS + " a", rejected=TEXTS + " a\n\nHuman: b\n\nAssistant: c"),
      TEXTS,
      (" a", " a\n\nHuman: b\n\nAssistant: c"),
    ),
    # No mark: whole words. A text that begins the other one keeps an answer.
    (dict(chosen="Say more", rejected="Say less"), "Say", (" more", " less")),
    (dict(chosen="Say motto", rejected="Say moth"), "Say", (" motto", " moth")),
    (dict(chosen="Say it", rejected="Say it now"), "Say", (" it", " it now")),
    (dict(chosen="Yes", rejected="No"), "", ("Yes", "No")),
    # Messages: an explicit prompt, and a common beginning.
    (dict(prompt=TALK, chosen=[GOOD], rejected=[BAD]), TALK, ([GOOD], [BAD])),
    (dict(chosen=[*TALK, GOOD], rejected=[*TALK, BAD]), TALK, ([GOOD], [BAD])),
    (dict(prompt=TALK, chosen="It is 7.", rejected=BAD["content"]), TALK, None),
    (dict(prompt="Add 1 and 2.", chosen=[GOOD], rejected=[BAD]), [ASK], None),
    (
      dict(prompt="Add 1 and 2.", chosen=[ASK, GOOD], rejected=[ASK, BAD]),
      [ASK],
      ([GOOD], [BAD]),
    ),
    (
      dict(chosen=[ASK, GOOD], rejected=[ASK, GOOD, ASK, BAD]),
      [ASK],
      ([GOOD], [GOOD, ASK, BAD]),
    ),
  ],
)  # fmt: skip
def test_forms(row, prompt, answers):
  found = preferences.parse(row, "a row")
  assert found.prompt == prompt
  if answers:
    assert found.answers == answers
  assert not found.tie


def test_ties_and_margins():
  assert preferences.parse(PAIR | dict(rejected=" 3"), "").tie
  assert preferences.parse(RANKED | dict(ranked=["a", "b", "a"]), "").tie
  assert preferences.parse(PAIR | dict(margin="0.5"), "").margin == 0.5
  assert preferences.parse(PAIR | dict(margin=None), "").margin == 0


@pytest.mark.parametrize(
  ("change", "says"),
  [
    (dict(margin="big"), r"R: `margin` is 'big'; it must be a number"),
    (dict(margin=float("nan")), "it must be a number"),
    (dict(margin=True), "it must be a number"),
    (dict(prompt=3), "R: `prompt` must be a text or a list, not int"),
    (dict(chosen=3), "`chosen`, `rejected` must all be texts, or all lists of"),
    (dict(chosen=[ASK, GOOD]), "not list and str"),
    (dict(chosen="\ud800"), r"`chosen` holds \\ud800, half of a surrogate"),
    (dict(chosen=[ASK], rejected=[ASK, BAD]), "`chosen` ends with a turn of 'user'"),
    (dict(chosen=[GOOD, 3], rejected=[BAD]), "`chosen` must be a list of {role, con"),
    (dict(chosen=None, ranked=["a"]), "`ranked` must be a list of 2 to 8 answers"),
    (dict(chosen=None, ranked=["a"] * 9), "answers, not 9"),
    (dict(chosen=None, ranked="[1"), "`ranked` must be a list of answers"),
    (dict(chosen=None, ranked=["a", "b", "c"], margin=1), "`margin` 1 is for two"),
    (
      dict(chosen=None, completion="x"),
      "R: has the form prompt/completion; objective.",
    ),
    (dict(chosen=None), "R: has prompt, chosen, rejected; expected one of"),
  ],
)
def test_bad_rows_are_one_clear_line(change, says):
  with pytest.raises(InputError, match=says):
    preferences.parse(PAIR | change, "R")


def test_a_group_holds_each_text_as_alone_and_its_arrays_say_where(tok):
  found = pairs.encode([PAIR | dict(margin=0.5), RANKED], tok, 99)
  lone = [
    dict(prompt=row["prompt"], completion=answer)
    for row, some in ((PAIR, (" 3", " 4 or 5")), (RANKED, RANKED["ranked"]))
    for answer in some
  ]
  alone = encode.encode(lone, tok, 99, "completion").examples
  batch = pairs.to_arrays([list(found.examples), [found.examples[1]]], 200)
  want = batches.to_arrays([list(alone), list(alone)[2:]], 200)
  for name in want:
    np.testing.assert_array_equal(batch[name], want[name])
  ends = np.cumsum([len(x.tokens) for x in alone]) - 1
  assert np.flatnonzero(batch["end"][0]).tolist() == ends.tolist()
  assert batch["tokens"][0][ends].tolist() == [tok.eos_ids[0]] * 5
  assert batch["group"][0][ends].tolist() == [1, 1, 2, 2, 2]
  assert batch["group"][0].astype(bool).tolist() == (batch["segment"][0] > 0).tolist()
  assert batch["margin"][0][ends].tolist() == [0.5, 0, 0, 0, 0]
  assert batch["margin"].sum() == 0.5
  assert {x.dtype.name for x in batch.values()} == {"int32", "float32", "bool"}
  assert found.counts.longest == max(len(x.tokens) for x in alone)


def test_messages_supervise_what_follows_the_common_beginning(tok):
  row = dict(chosen=[*TALK, GOOD], rejected=[*TALK, BAD])
  (example,) = pairs.encode([row], tok, 200).examples
  batch = pairs.to_arrays([[example]], 200)
  for number, answer in enumerate((GOOD, BAD), 1):
    here = batch["segment"][0] == number
    tokens = batch["tokens"][0][here]
    assert tokens.tolist() == tok.chat([*TALK, answer])[0]
    predicted = batch["targets"][0][here & (batch["weights"][0] > 0)]
    prompt = tok.chat(TALK, generation_prompt=True)[0]
    assert [*prompt, *predicted] == tokens.tolist()


def test_what_does_not_fit_is_left_out_whole_and_counted(tok):
  long = PAIR | dict(chosen=" 3" * 50)
  rows = [PAIR, long, PAIR | dict(rejected=" 3"), RANKED]
  found = pairs.encode(rows, tok, 90)
  assert len(found.examples) == 2
  assert found.counts[:2] == (
    sum(len(x.tokens) for x in found.examples),
    sum(int(x.supervised.sum()) for x in found.examples),
  )
  text = found.summary("x")
  assert "1 ties left out" in text
  assert "1 preferences longer than data.max_tokens left out" in text
  size = sum(len(e.tokens) for e in pairs.encode([PAIR], tok, 200).examples)
  assert len(pairs.encode([PAIR], tok, size).examples) == 1
  with pytest.raises(InputError, match=rf"\({size - 1}\): the shortest has {size} tok"):
    pairs.encode([PAIR], tok, size - 1)
  with pytest.raises(InputError, match="all 1 rows are ties"):
    pairs.encode([PAIR | dict(rejected=" 3")], tok, 90)


def test_margins_are_kept_in_files(tok, tmp_path):
  rows = [PAIR | dict(margin=m) for m in (1, -2.5)] + [RANKED]
  made = pairs.encode(rows, tok, 90, into=examples.Files(tmp_path)).examples
  loaded, _ = examples.load(tmp_path)
  for found in (made, loaded):
    assert [x.value for x in found] == [1, -2.5, 0]
  plain = encode.encode([dict(prompt="a", completion=" b")], tok, 90, "completion")
  assert plain.examples[0].value == 0


def test_the_last_token_is_trimmed_as_padding(tok):
  (example,) = pairs.encode([PAIR], tok, 90, trim=tok.eos_ids[0]).examples
  assert tok.eos_ids[0] not in example.tokens
  whole = pairs.encode([PAIR], tok, 90).examples[0]
  assert len(example.tokens) == len(whole.tokens) - 2


def run(path, **objective):
  c = config.base()
  c.objective.update(objective)
  c.data.train, c.data.eval = str(path), ""
  c.adapt = dict(main=dict(name="LoRA", match=".*/attn/q"))
  return c


def test_a_run_refuses_rows_of_another_objective_before_the_model_is_read(tmp_path):
  path = tmp_path / "rows.jsonl"
  path.write_text(json.dumps(PAIR) + "\n")
  with pytest.raises(InputError, match=r"line 1: the row holds a preference .*object"):
    experiment.prepare(run(path), base=0)
  path.write_text(json.dumps(dict(prompt="a", completion="b")) + "\n")
  with pytest.raises(
    InputError, match=r"line 1: has the form prompt/completion; objec"
  ):
    experiment.prepare(run(path, name="reward"), base=0)


def test_rows_that_are_not_from_files_are_refused_when_they_are_encoded(tok):
  with pytest.raises(InputError, match="data, row 1: the row holds a preference"):
    encode.encode([PAIR], tok, 90, "completion")
  with pytest.raises(InputError, match="row 1: has the form question/answer"):
    pairs.encode(sources.embedded("one_step/test"), tok, 90)


@pytest.mark.parametrize(
  ("key", "value", "says"),
  [
    ("objective.beta", 0.2, "objective.beta is 0.2, but the objective 'reward' does n"),
    ("tokens.fraction", 0.5, "tokens.fraction is 0.5, which the objective 'reward' ca"),
    ("train.neftune", 5.0, "train.neftune is 5.0"),
    ("data.loss_on", "all", "data.loss_on is 'all'"),
    ("objective.label_smoothing", 0.5, r"label_smoothing 0.5 is not in \[0, 0.5\)"),
    ("objective.center", -1.0, "objective.center -1.0 is not in"),
    ("objective.pool", "first", "unknown objective.pool 'first'"),
    ("objective.name", "rewards", "Did you mean 'reward'"),
  ],
)
def test_options_that_the_objective_cannot_use_are_refused(key, value, says):
  c = config.base()
  c.objective.name = "reward"
  c.update_from_flattened_dict({key: value})
  with pytest.raises(InputError, match=says):
    objectives.from_config(c)
  c = config.base()
  if key.startswith("objective") and key != "objective.name":
    c.update_from_flattened_dict({key: value})
    with pytest.raises(InputError, match="objective 'supervised' does not use it"):
      objectives.from_config(c)
