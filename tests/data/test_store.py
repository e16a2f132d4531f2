"""Tokens kept in files: the same batches, made once, and again when they must be."""

import dataclasses
import json
import os
import random
import shutil
import time

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import jaxpeft
from jaxpeft import config as configs
from jaxpeft import run_data
from jaxpeft.data import (
  batches,
  encode,
  examples,
  order,
  sources,
  store,
  tokenizer,
  toy,
)


@pytest.fixture(scope="module")
def base():
  return jaxpeft.load("embedded")


@pytest.fixture
def run(tmp_path, monkeypatch, base):
  """Reads the data of a run as if its file were large; counts what is tokenized."""
  return Run(tmp_path, monkeypatch, base)


class Run:
  def __init__(self, folder, monkeypatch, base):
    self.base, self.path, self.cache = base, folder / "d.jsonl", folder / "cache"
    self.rows = toy.problems(2, "train", 50, seed=0)
    self.config = configs.base()
    c = self.config
    c.data.train, c.data.eval, c.eval.task = str(self.path), "", ""
    c.data.max_tokens, c.train.batch_size = 150, 4
    self.write()
    monkeypatch.setenv("JAXPEFT_CACHE", str(self.cache))
    monkeypatch.setattr(sources, "LARGE", 1000)
    self.count, self.notes = 0, []
    whole = tokenizer.Tokenizer.encode_all

    def encode_all(tok, texts, bos=False):
      self.count += len(texts)
      return whole(tok, texts, bos)

    monkeypatch.setattr(tokenizer.Tokenizer, "encode_all", encode_all)
    monkeypatch.setattr(run_data.console, "note", self.notes.append)

  def write(self):
    self.path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

  def read(self):
    """(arrays of all rows, how many texts were tokenized for them)."""
    before = self.count
    data = run_data.read(self.config, self.base)
    rows = data.batches.rows
    return batches.to_arrays(rows, self.config.data.max_tokens), self.count - before

  def entries(self):
    found = sorted((self.cache / "data").glob("*/about.json"), key=os.path.getmtime)
    return [path.parent for path in found]


def assert_same(a, b):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name])


def test_kept_tokens_are_those_made_in_memory_and_are_made_once(run, monkeypatch):
  first, made = run.read()
  again, none = run.read()
  assert (made, none) == (100, 0), "prompts and whole texts; then nothing"
  assert_same(first, again)
  monkeypatch.setattr(sources, "LARGE", 10**9)
  small, made = run.read()
  assert made == 100
  assert_same(first, small)
  assert len(run.entries()) == 1, "tokens of small files are not kept"


def test_counts_are_kept_too(run):
  run.config.data.max_tokens = 60
  lines = [run_data.read(run.config, run.base).summary for _ in range(2)]
  assert "cut to max_tokens" in lines[0][0]
  assert lines[0] == lines[1]


def test_an_example_that_just_fits_is_not_cut(base):
  rows = [dict(prompt="a", completion="b" * 9)]
  (whole,) = encode.encode(rows, base.tokenizer, 99, "completion").examples
  for room, cut in ((len(whole.tokens), 0), (len(whole.tokens) - 1, 1)):
    got = encode.encode(rows, base.tokenizer, room, "completion")
    assert got.truncated == cut
    assert len(got.examples[0].tokens) == room


def other_tokenizer(run):
  core = tokenizer.tokenizers.Tokenizer.from_str(run.base.tokenizer.core.to_str())
  core.add_special_tokens(["Anna"])
  new = dataclasses.replace(run.base.tokenizer, core=core)
  run.base = run.base.replace(tokenizer=new)


def other_template(run):
  new = dataclasses.replace(run.base.tokenizer, chat_template="{{ messages }}")
  run.base = run.base.replace(tokenizer=new)


def other_row(run):
  run.rows[7]["answer"] = "3"
  run.write()


CHANGES = {
  "max_tokens": lambda run: run.config.data.update(max_tokens=149),
  "loss_on": lambda run: run.config.data.update(loss_on="all"),
  "limit": lambda run: run.config.data.update(limit=49),
  "columns": lambda run: run.config.data.columns.update(
    question="question", answer="answer"
  ),
  "tokenizer": other_tokenizer,
  "template": other_template,
  "a row": other_row,
  "end of text": lambda run: setattr(
    run,
    "base",
    run.base.replace(tokenizer=dataclasses.replace(run.base.tokenizer, eos_ids=(5,))),
  ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_tokens_depend_on_makes_them_anew(run, change):
  run.read()
  CHANGES[change](run)
  _, made = run.read()
  assert made >= 98


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


DAMAGE = {
  **{f"a bit of {x}": lambda e, x=x: flip(e / x) for x in (*examples._FILES,)},
  "a bit of about.json": lambda e: flip(e / "about.json"),
  "a short file": lambda e: os.truncate(e / "tokens", 100),
  "a long file": lambda e: (e / "offsets").open("ab").write(b"12345678"),
  "a lost file": lambda e: (e / "supervised").unlink(),
  "an empty file": lambda e: (e / "about.json").write_text(""),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_tokens_are_noticed_and_made_again(run, damage):
  want, _ = run.read()
  (entry,) = run.entries()
  DAMAGE[damage](entry)
  got, made = run.read()
  assert made == 100
  assert_same(got, want)
  assert "damaged" in run.notes[-1]
  assert run.read()[1] == 0


def test_large_files_are_checked_only_if_they_were_touched(run, monkeypatch):
  """A change of the content always is one of the time, unless somebody hides it."""
  run.read()
  (entry,) = run.entries()
  monkeypatch.setattr(examples, "_CHECKED", 10)
  assert examples.load(entry) is not None
  time_ = (entry / "tokens").stat().st_mtime_ns
  flip(entry / "tokens")
  assert examples.load(entry) is None
  os.utime(entry / "tokens", ns=(time_, time_))
  assert examples.load(entry) is not None
  os.truncate(entry / "tokens", 100)
  os.utime(entry / "tokens", ns=(time_, time_))
  assert examples.load(entry) is None, "its size is always checked"


def test_a_failure_leaves_nothing_behind(run, monkeypatch):
  monkeypatch.setattr(sources, "_FIRST", 5)
  run.rows[30] = {"question": "no answer"}
  run.write()
  with pytest.raises(jaxpeft.InputError, match="line 31: has question"):
    run_data.read(run.config, run.base)
  assert [x for x in (run.cache / "data").iterdir() if x.is_dir()] == []


def test_a_file_that_changes_while_it_is_read_is_refused(run, monkeypatch):
  source = sources.find(str(run.path))
  placed = sources.Source.placed

  def changing(self, limit=None):
    yield from placed(self, limit)
    with run.path.open("a") as f:
      f.write("\n")

  monkeypatch.setattr(sources.Source, "placed", changing)
  with pytest.raises(jaxpeft.InputError, match="changed while it was read"):
    run_data._training_examples(run.config, run.base.tokenizer, source)


def test_the_entries_used_longest_ago_are_dropped(run, monkeypatch):
  sizes = []
  for limit in (20, 30, 40):
    run.config.data.limit = limit
    run.read()
    new = run.entries()[-1]
    sizes.append(sum(x.stat().st_size for x in new.iterdir()))
    os.utime(new / "about.json", (limit, limit))
    os.utime(new, (limit, limit))
  run.config.data.limit = 20  # now it is the one that was used last
  assert run.read()[1] == 0
  monkeypatch.setenv("JAXPEFT_DATA_CACHE_GB", str((sizes[0] + sizes[2] + 10) / 1e9))
  run.config.data.limit = 40
  assert run.read()[1] == 0
  assert len(run.entries()) == 2, "that of 30 is gone"
  run.config.data.limit = 20
  assert run.read()[1] == 0
  monkeypatch.setenv("JAXPEFT_DATA_CACHE_GB", "0")
  assert run.read()[1] == 0, "what is used stays"
  assert len(run.entries()) == 1
  monkeypatch.setenv("JAXPEFT_DATA_CACHE_GB", "much")
  with pytest.raises(jaxpeft.InputError, match="JAXPEFT_DATA_CACHE_GB is 'much'"):
    run.read()


def test_what_killed_processes_left_is_removed(run):
  run.read()
  old, young = (run.cache / "data" / f".new-{x}" for x in ("old", "young"))
  for path in (old, young):
    path.mkdir()
    (path / "tokens").write_bytes(b"x")
  long_ago = time.time() - 10_000
  os.utime(old / "tokens", (long_ago, long_ago))
  os.utime(old, (long_ago, long_ago))
  run.read()
  assert not old.exists()
  assert young.exists(), "somebody may be writing there"


def test_without_a_place_for_files_tokens_are_in_memory_if_they_fit(run, monkeypatch):
  want, _ = run.read()
  shutil.rmtree(run.cache)
  run.cache.write_text("a file where the directory should be")
  got, made = run.read()
  assert made == 100
  assert_same(got, want)
  assert any("JAXPEFT_CACHE" in note for note in run.notes)
  monkeypatch.setattr(run_data, "_FITS", 10)
  with pytest.raises(store.Unwritable, match="JAXPEFT_CACHE"):
    run.read()


def test_progress_is_said_every_few_seconds(run, monkeypatch):
  monkeypatch.setattr(encode, "_ROWS", 10)
  monkeypatch.setattr(run_data, "_SAY_S", 0.0)
  run.read()
  said = [note for note in run.notes if note.startswith(f"tokenizing {run.path}: ")]
  assert len(said) == 5
  assert said[-1].endswith("100%, about 0 s left")


# ---- packing ---------------------------------------------------------------------


def best_fit(lengths, max_tokens):
  """Best-fit decreasing, one example after another; ties go to the latest row."""
  rows, space = [], []  # space: (room, when the row came to it, row)
  for time_, i in enumerate(sorted(range(len(lengths)), key=lambda i: -lengths[i])):
    fitting = [x for x in space if x[0] >= lengths[i]]
    room, when, row = min(fitting, key=lambda x: (x[0], -x[1]), default=(None, 0, 0))
    if room is None:
      rows.append([])
      room, row = max_tokens, len(rows) - 1
    else:
      space.remove((room, when, row))
    rows[row].append(i)
    space.append((room - lengths[i], time_, row))
  return rows


def packed(lengths, max_tokens):
  tokens = np.concatenate([np.full(n, i, np.int32) for i, n in enumerate(lengths)])
  offsets = np.concatenate([[0], np.cumsum(lengths)])
  some = examples.Examples(tokens, tokens > 0, offsets)
  return [[int(e.tokens[0]) for e in row] for row in batches.pack(some, max_tokens)]


@hypothesis.settings(max_examples=40, deadline=None, derandomize=True, database=None)
@hypothesis.given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_packing_is_best_fit_decreasing(lengths):
  assert packed(lengths, 20) == best_fit(lengths, 20)


def test_sorting_in_parts_is_sorting(monkeypatch):
  monkeypatch.setattr(batches, "_PART", 7)
  rng = random.Random(0)
  lengths = [rng.randint(1, 30) for _ in range(200)]
  assert packed(lengths, 30) == best_fit(lengths, 30)


def test_examples_are_a_sequence():
  some = examples.Examples(np.arange(6), np.ones(6, bool), np.array([0, 1, 3, 6]))
  assert [e.tokens.tolist() for e in some] == [[0], [1, 2], [3, 4, 5]]
  assert [e.tokens.tolist() for e in some[1:]] == [[1, 2], [3, 4, 5]]
  assert some[-1].tokens.tolist() == [3, 4, 5]
  assert some.lengths.tolist() == [1, 2, 3]
  with pytest.raises(IndexError):
    some[3]


# ---- order -----------------------------------------------------------------------


def test_the_order_is_the_one_that_runs_began_with():
  """Numbers that grain 0.2.18 gave; a run of an older version resumes with them."""
  want = {
    (1000, 0): [297, 371, 706, 141, 935],
    (65_537, 7): [25313, 11155, 36944, 58705, 60160],
    (300_000, 7): [165351, 259026, 85596, 222163, 224055],
  }
  for (count, seed), first in want.items():
    assert order.rows(np.arange(len(first)), count, seed).tolist() == first


@pytest.mark.parametrize("count", [1, 2, 40, 1000, 65_538, 300_000])
@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_the_order_is_that_of_grain(count, seed):
  grain = pytest.importorskip("grain")
  theirs = grain.MapDataset.source(range(count)).seed(seed).shuffle().repeat()
  positions = np.random.default_rng(0).integers(0, 3 * count, 8)
  want = [theirs[i] for i in positions.tolist()]
  assert order.rows(positions, count, seed).tolist() == want


@pytest.mark.parametrize("count", [1, 2, 3, 64, 5000, 70_000])
def test_an_epoch_has_every_row_once(count):
  for epoch in (0, 5):
    numbers = order.rows(np.arange(epoch * count, (epoch + 1) * count), count, 3)
    assert sorted(numbers.tolist()) == list(range(count))


# ---- steps and sizes ---------------------------------------------------------------


@pytest.mark.parametrize(("epochs", "steps"), [(None, 200), (1.0, 3), (0.1, 1), (2, 5)])
def test_epochs_decide_about_steps(epochs, steps):
  c = configs.base()
  c.train.epochs = epochs
  rows = batches.Rows([], np.arange(10), np.arange(11))
  assert run_data.with_steps(c, batches.Batches(rows, 10, 4, 0)).train.steps == steps


def test_a_batch_that_no_memory_holds_is_refused(base):
  c = configs.base()
  run_data.check_batch(c, base.config)
  for section, key, value in (
    ("data", "max_tokens", 10**9),
    ("train", "batch_size", 10**9),
  ):
    c = configs.base()
    c[section][key] = value
    with pytest.raises(jaxpeft.InputError, match=f"{section}.{key} {value}.*GB"):
      run_data.check_batch(c, base.config)


def test_the_steps_of_epochs_reach_schedule_and_config(run):
  from jaxpeft import config_file, experiment

  changes = [
    f"--config.data.train={run.path}", "--config.data.eval=", "--config.eval.task=",
    "--config.train.batch_size=5", "--config.data.pack=false",
    "--config.train.epochs=1.5", "--config.optim.schedule=linear",
  ]  # fmt: skip
  config = config_file.load("configs/lora.py", changes)
  prepared = experiment.prepare(config, run.base)
  assert config.train.steps == 200, "the caller's config stays"
  assert prepared.config.train.steps == 15
  assert float(prepared.rate(14)) > 0
  assert float(prepared.rate(15)) == 0
  assert experiment.make(config, prepared).config.train.steps == 15
  again = configs.filled(configs.to_json(prepared.config))
  assert again == configs.to_json(prepared.config)
  for epochs in (0, -1.0, float("nan"), float("inf"), 1e300):
    config.train.epochs = float(epochs)
    with pytest.raises(jaxpeft.InputError, match=r"train\.epochs"):
      experiment.prepare(config, run.base)
