"""Chat: prompts, adapters by name, commands; Ctrl-C ends answers, not the program."""

import argparse
import builtins
import dataclasses
import io
import json
import os
import signal
import sys

import jax
import numpy as np
import pytest

import jaxpeft
from jaxpeft import assets, config
from jaxpeft import model as models
from jaxpeft.chat import conversation, forms, terminal, voices
from jaxpeft.commands import chat
from jaxpeft.data import sources, tokenizer
from jaxpeft.generation.ask import Conversation as Prompt
from jaxpeft.generation.ask import prompt_ids
from jaxpeft.generation.sampling import Sampling
from jaxpeft.transformer.decoder import Transformer
from tests.support import meshes

NEW = 12
MATCH = "layers_.*/attn/(q|v)"
ASK, MORE = "Question: 12+13?", "And 5+6?"


@pytest.fixture(scope="module")
def base():
  """Two layers with random weights, and a tokenizer with a chat template."""
  config = dataclasses.replace(meshes.CONFIG, vocab_size=512, max_positions=1024)
  transformer = Transformer(config)
  params = models.init(transformer, 0)
  return jaxpeft.Model(transformer, params, tokenizer.load(assets.TINY), "random")


def adapted(base, seed, rank=4):
  """An adapter that changes what the model says."""
  params = jaxpeft.adapt(
    base.params, {MATCH: jaxpeft.LoRA(rank=rank)}, jax.random.key(seed)
  )
  trainable, frozen = jaxpeft.partition(params, jaxpeft.trainable_mask(params))
  keys = iter(jax.random.split(jax.random.key(seed), 99))
  noisy = jax.tree.map(
    lambda x: x + 0.5 * jax.random.normal(next(keys), x.shape), trainable
  )
  return jaxpeft.combine(noisy, frozen)


@pytest.fixture(scope="module")
def bare(base):
  return voices.Voices(base, {}, Sampling())


def talk(found, form="chat", system=""):
  return conversation.Conversation(found, form, system, NEW, 0)


def generated(base, messages, params=None):
  """The likeliest answer to a conversation."""
  return likeliest(base, prompt_ids(base.tokenizer, Prompt(messages)), params)


def likeliest(base, ids, params=None):
  """The likeliest answer by the definition: each token from the whole text before."""
  adapted = base if params is None else base.replace(params=params)
  row, new = np.zeros((1, 160), np.int32), []
  row[0, : len(ids)] = ids
  for i in range(len(ids), len(ids) + NEW):
    row[0, i] = adapted(row, np.arange(160)[None] < i)[0, i - 1].argmax()
    if row[0, i] in base.tokenizer.eos_ids:
      break
    new.append(row[0, i])
  return base.tokenizer.decode(new)


def user(text):
  return {"role": "user", "content": text}


def said(text):
  return {"role": "assistant", "content": text}


def typed(monkeypatch, *lines):
  """stdin with these lines, which is no terminal."""
  monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{x}\n" for x in lines)))


def test_a_pipe_gets_one_answer_for_each_line(base, bare, monkeypatch, capsys):
  typed(monkeypatch, ASK, "", MORE)
  terminal.run(talk(bare))
  first = generated(base, [user(ASK)])
  second = generated(base, [user(ASK), said(first), user(MORE)])
  assert capsys.readouterr().out == f"{first}\n{second}\n"


def test_commands(base, bare, monkeypatch, capsys, tmp_path):
  this, file = talk(bare), tmp_path / "said.jsonl"
  typed(monkeypatch, "/help", "/system Be brief.", ASK, f"/save {file}", "/reset",
        "/system", MORE, "/quit", "never read")  # fmt: skip
  terminal.run(this)
  system = {"role": "system", "content": "Be brief."}
  first = generated(base, [system, user(ASK)])
  out, err = capsys.readouterr()
  assert out == f"{first}\n{generated(base, [user(MORE)])}\n"
  assert "/adapter NAME" in err
  (row,) = sources.read(file)
  assert row["messages"] == [system, user(ASK), said(first)]
  with pytest.raises(jaxpeft.InputError, match="exists; name another file"):
    this.save(file)


def test_a_line_may_begin_with_a_slash(bare, monkeypatch, capsys):
  this = talk(bare)
  typed(monkeypatch, "//help")
  terminal.run(this)
  assert this.messages[0] == user("/help")
  assert "/adapter NAME" not in capsys.readouterr().err


@pytest.mark.parametrize(
  "ranks",
  [(4, 4), pytest.param((4, 8), marks=pytest.mark.slow)],
  ids=["shared", "apart"],
)
def test_adapters_answer_by_name(base, monkeypatch, capsys, ranks):
  trees = {name: adapted(base, i, ranks[i]) for i, name in enumerate("ab")}
  found = voices.Voices(base, trees, Sampling())
  assert found._shared == (ranks[0] == ranks[1])
  typed(monkeypatch, ASK, "/reset", "/adapter b", ASK, "/reset", "/adapter base", ASK)
  terminal.run(talk(found))
  want = [
    generated(base, [user(ASK)], tree) for tree in (trees["a"], trees["b"], base.params)
  ]
  assert len(set(want)) == 3, "the adapters do not differ"
  out, err = capsys.readouterr()
  assert out.splitlines() == [line for text in want for line in text.split("\n")]
  assert "adapters: a, b (in use), base" in err


def test_an_adapter_answers_what_was_said_to_another(base):
  """Keys and values of one adapter's turns are not those of another's."""
  trees = {name: adapted(base, i) for i, name in enumerate("ab")}
  this = talk(voices.Voices(base, trees, Sampling()))
  first = "".join(this.answer(ASK))
  this.voices.use("b")
  second = "".join(this.answer(MORE))
  history = [user(ASK), said(first), user(MORE)]
  assert second == generated(base, history, trees["b"])


def test_the_oldest_turns_go_when_there_is_no_room(base, capsys):
  asked = [f"Question: {n}+{n}?" for n in range(11, 20)]
  config_ = dataclasses.replace(base.config, max_positions=100)
  found = voices.Voices(base, {}, Sampling())
  found.model = base.replace(transformer=base.transformer.clone(config=config_))
  this = talk(found, system="Short.")
  for line in asked:
    "".join(this.answer(line))
  assert "do not fit 100 positions" in capsys.readouterr().err
  left = [m["content"] for m in this.messages if m["role"] == "user"]
  assert 0 < len(left) < len(asked)
  assert left == asked[-len(left) :]
  system = {"role": "system", "content": "Short."}
  assert this.messages[-1]["content"] == generated(base, [system, *this.messages[:-1]])
  before = list(this.messages)
  with pytest.raises(jaxpeft.InputError, match=r"tokens, the model 100 positions"):
    next(this.answer("word " * 200))
  assert this.messages == before


def test_a_run_is_asked_in_the_form_it_was_trained_on(base, bare, tmp_path):
  c = config.base()
  assert forms.of_run(c, base.tokenizer)[0] == "question/answer"
  this = talk(bare, "question/answer")
  ids = base.tokenizer.encode("Question: 12+13?\nAnswer:", bos=True)
  want = likeliest(base, ids)
  for _ in range(2):  # each line alone
    assert "".join(this.answer("12+13?")) == want
  rows = {
    "chat": {"messages": [user("a"), said("b")]},
    "alpaca": {"instruction": "a", "output": "b"},
    "plain": {"prompt": "a", "completion": "b"},
  }
  for form, row in rows.items():
    c.data.train = str(tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    assert forms.of_run(c, base.tokenizer)[0] == form
  c.data.train = c.data.eval = str(tmp_path / "gone.jsonl")
  form, why = forms.of_run(c, base.tokenizer)
  assert form == "chat"
  assert "gone.jsonl" in why
  prompt = base.tokenizer.decode(
    forms.tokens("alpaca", base.tokenizer, [user("Count.")])
  )
  assert "### Instruction:\nCount.\n\n### Response:\n" in prompt


class Talk:
  """A conversation whose answer has five pieces; Ctrl-C comes after the second."""

  voices = None

  def __init__(self, presses):
    self.presses, self.lines = presses, []

  def answer(self, line):
    self.lines.append(line)
    for i in range(5):
      if i == 2:
        for _ in range(self.presses):
          os.kill(os.getpid(), signal.SIGINT)
      yield f"{i} "


def test_ctrl_c_stops_the_answer_and_not_the_program(monkeypatch, capsys):
  before, this = signal.getsignal(signal.SIGINT), Talk(1)
  typed(monkeypatch, "one", "two")
  terminal.run(this)
  assert this.lines == ["one", "two"]
  assert capsys.readouterr().out == "0 1 2 \n" * 2
  with pytest.raises(KeyboardInterrupt):
    terminal._answer(Talk(2), "three")
  assert signal.getsignal(signal.SIGINT) is before


def test_at_a_terminal_mistakes_and_ctrl_c_end_nothing(bare, monkeypatch, capsys):
  what = iter(["/nope", KeyboardInterrupt, "/adapter nobody", "/save", EOFError])

  def read(prompt):
    value = next(what)
    if isinstance(value, str):
      return value
    raise value

  monkeypatch.setattr(builtins, "input", read)
  monkeypatch.setattr(sys, "stdin", io.StringIO())
  monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
  terminal.run(talk(bare))
  err = capsys.readouterr().err
  assert "unknown command 'nope'" in err
  assert "unknown adapter 'nobody'" in err
  assert "/save needs the name of a file" in err
  assert next(what, None) is None


def test_a_pipe_ends_at_the_first_mistake(bare, monkeypatch):
  typed(monkeypatch, "/adapter nobody", ASK)
  with pytest.raises(jaxpeft.InputError, match="nobody"):
    terminal.run(talk(bare))


def test_text_that_is_none_is_refused(bare, monkeypatch):
  monkeypatch.setattr(
    sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff\n"), encoding="utf-8")
  )
  with pytest.raises(jaxpeft.InputError, match="surrogate"):
    terminal.run(talk(bare))


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (["mine"], "must be NAME=DIR"),
    (["=x"], "must be NAME=DIR"),
    (["mine=/nowhere"], "there is no directory /nowhere"),
    (["base={tmp}"], "'base' is taken"),
    (["a={tmp}", "a={tmp}"], "'a' is taken"),
    (["a={tmp}"], "cannot read"),
  ],
)
def test_wrong_adapters_are_one_line(tmp_path, monkeypatch, base, given, message):
  monkeypatch.setattr(voices.model, "load", lambda *_, **__: base)
  given = [text.format(tmp=tmp_path) for text in given]
  with pytest.raises(jaxpeft.InputError, match=message):
    voices.of_model("embedded", "float32", None, given, Sampling())


def test_adapters_of_either_format_and_runs_are_opened(tmp_path, monkeypatch, base):
  monkeypatch.setattr(voices.model, "load", lambda *_, **__: base)
  tree = adapted(base, 1)
  jaxpeft.save_adapter(tree, tmp_path / "own", key=jax.random.key(1))
  jaxpeft.save_adapter(tree, tmp_path / "peft", "peft", base=base.params)
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "config.json").write_text("{}")
  (tmp_path / "own").rename(tmp_path / "run" / "adapter")
  given = [f"{name}={tmp_path / name}" for name in ("run", "peft")]
  found = voices.of_model("embedded", "float32", None, given, Sampling())
  assert found.names == ["run", "peft", "base"]
  assert found.used == "run"


def command(monkeypatch, *words):
  """Runs `python -m jaxpeft chat` with these words here, on one device."""
  monkeypatch.setattr(voices.experiment, "enter_mesh", lambda mesh: None)
  parser = argparse.ArgumentParser()
  chat.add(parser)
  chat.run(parser.parse_args([f"--max_new_tokens={NEW}", *words]))


def test_the_command_talks_with_a_model(base, monkeypatch, capsys):
  monkeypatch.setattr(voices.model, "load", lambda *_, **__: base)
  typed(monkeypatch, ASK)
  command(monkeypatch, "--model=embedded")
  out, err = capsys.readouterr()
  assert out == f"{generated(base, [user(ASK)])}\n"
  assert "prompts: the tokenizer's chat template" in err
  with pytest.raises(jaxpeft.InputError, match=r"--seed=-1 is not in"):
    command(monkeypatch, "--model=embedded", "--seed=-1")
  with pytest.raises(jaxpeft.InputError, match="max_new_tokens=0 is below 1"):
    command(monkeypatch, "--model=embedded", "--max_new_tokens=0")


def test_the_command_talks_with_a_run_and_its_base(base, monkeypatch, capsys, tmp_path):
  folder = tmp_path / "mine"
  (folder / "adapter").mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps(config.to_json(config.base())))
  tuned = base.replace(params=adapted(base, 1))
  monkeypatch.setattr(voices.experiment, "read_base", lambda _: base)
  monkeypatch.setattr(voices.experiment, "load_run", lambda *_: tuned)
  typed(monkeypatch, "12+13?", "/adapter base", "12+13?")
  command(monkeypatch, f"--ckpt={folder}")
  ids = base.tokenizer.encode("Question: 12+13?\nAnswer:", bos=True)
  want = [likeliest(base, ids, m.params) for m in (tuned, base)]
  out, err = capsys.readouterr()
  assert out == "".join(f"{text}\n" for text in want)
  assert "the run was trained on rows with question/answer" in err
  assert "answers by mine" in err
  (folder / "adapter").rmdir()
  with pytest.raises(jaxpeft.InputError, match="its training is not finished"):
    command(monkeypatch, f"--ckpt={folder}")


def test_only_the_chat_form_has_a_system_prompt(bare):
  with pytest.raises(jaxpeft.InputError, match="needs the form chat"):
    talk(bare, "plain", system="Be brief.")
