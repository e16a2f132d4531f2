"""Streaming: the tokens of `generate`, in pieces of text that are certain."""

import dataclasses

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models

import jaxpeft
from jaxpeft import assets
from jaxpeft import model as models_
from jaxpeft.data import tokenizer as tokenizers_
from jaxpeft.generation import decode, stream
from jaxpeft.generation.sampling import Sampling
from jaxpeft.parallel import sharding
from jaxpeft.transformer.config import Rope
from jaxpeft.transformer.decoder import Transformer
from tests.support import meshes

NEW = 20


@pytest.fixture(scope="module")
def model():
  """Two layers with random weights."""
  config = dataclasses.replace(meshes.CONFIG, max_positions=1024)
  transformer = Transformer(config)
  tokenizer = tokenizers_.load(assets.TINY)
  return jaxpeft.Model(transformer, models_.init(transformer, 0), tokenizer, "random")


def prompt(n, seed=0):
  return np.random.default_rng(seed).integers(3, 60, n).tolist()


def generated(model, ids, new=NEW, **kwargs):
  """What `generate` gives, padded to lengths of which few are compiled."""
  out = decode.generate(model.transformer, model.params, [ids], NEW, **kwargs)[0]
  return out[:new]


def likeliest(model, ids, new=NEW, slots=96):
  """The likeliest tokens by the definition: each from the whole text before it."""
  row = np.zeros((1, slots), np.int32)
  row[0, : len(ids)] = ids
  for i in range(len(ids), len(ids) + new):
    row[0, i] = model(row, np.arange(slots)[None] < i)[0, i - 1].argmax()
  return row[0, len(ids) : len(ids) + new].tolist()


def streamed(session, *args, **kwargs):
  return [token for chunk in session.tokens(*args, **kwargs) for token in chunk]


@pytest.fixture(scope="module")
def session(model):
  return stream.Session(model.transformer, model.params)


@pytest.mark.parametrize("length", [10, 300])
def test_the_tokens_are_those_of_generate(model, session, length):
  """Also for a prompt in several pieces, and chunks that do not divide the answer."""
  session.forget()
  ids = prompt(length)
  assert streamed(session, ids, NEW) == generated(model, ids)


def test_a_conversation_goes_on_from_what_was_read(model, session):
  session.forget()
  ids, read = prompt(4), 0
  for turn in range(3):
    new = streamed(session, ids, 13)
    assert new == likeliest(model, ids, 13)
    assert session.reused == read
    read = len(ids) + len(new) - 1  # all but the last token
    ids = ids + new + prompt(3, seed=turn)
  changed = [*ids[:7], (ids[7] + 1) % 60, *ids[8:]]
  assert streamed(session, changed, 13) == likeliest(model, changed, 13)
  assert session.reused == 7
  assert streamed(session, changed, 13) == likeliest(model, changed, 13)
  assert session.reused == len(changed) - 1


def test_an_answer_may_end_early_and_the_session_goes_on(model, session):
  session.forget()
  ids = prompt(10)
  answer = session.tokens(ids, NEW)
  new = next(answer) + next(answer)
  answer.close()
  assert len(new) == 9
  assert new == likeliest(model, ids, 9)
  longer = ids + new + prompt(3)
  assert streamed(session, longer, 9) == likeliest(model, longer, 9)
  assert session.reused == len(ids) + len(new) - 1


def test_the_cache_grows_with_the_text(model, session):
  session.forget()
  ids = prompt(300)
  streamed(session, ids, 4)
  ids = ids + prompt(205, seed=1)  # more than the 512 slots of the first cache
  assert streamed(session, ids, NEW) == likeliest(model, ids, slots=528)
  assert session.reused == 300


def test_a_stop_token_ends_it_and_is_left_out(model):
  free = generated(model, prompt(10))
  at = next(i for i in range(4, NEW) if free.index(free[i]) == i)
  for stop in (free[0], free[at]):
    session = stream.Session(model.transformer, model.params, (61, stop))
    assert streamed(session, prompt(10), NEW) == free[: free.index(stop)]
    assert len(session._held) == 10 + free.index(stop), "it went on behind the stop"


def test_draws_are_those_of_generate(model):
  hot = Sampling(temperature=1.0, top_p=0.9)
  session = stream.Session(model.transformer, model.params, (), hot)
  for seed in (0, 7):
    want = generated(model, prompt(9), sampling=hot, seed=seed)
    assert streamed(session, prompt(9), NEW, seed) == want


def test_a_failure_leaves_an_empty_session(model, session, monkeypatch):
  """The programs take the cache: after a failure there is none to go on from."""

  whole = stream._chunk

  def fail(*args):
    whole(*args)
    raise KeyboardInterrupt

  session.forget()
  answer = session.tokens(prompt(10), NEW)
  next(answer)
  with monkeypatch.context() as patch:
    patch.setattr(stream, "_chunk", fail)
    with pytest.raises(KeyboardInterrupt):
      next(answer)
  assert streamed(session, prompt(10), NEW) == likeliest(model, prompt(10))


def test_few_programs_serve_many_lengths(session):
  session.forget()
  streamed(session, prompt(3), 9)
  sizes = [f._cache_size() for f in (stream._read, stream._chunk)]
  for n in (2, 5, 11, 16):
    streamed(session, prompt(n), 9)
  assert [f._cache_size() for f in (stream._read, stream._chunk)] == sizes


@pytest.mark.slow
def test_a_model_whose_rotation_depends_on_the_length_reads_all_again(model):
  options = (("factor", 2.0), ("original_max_position_embeddings", 8))
  config = dataclasses.replace(
    model.config, ropes=(Rope(model.config.ropes[0].theta, "dynamic", options),)
  )
  changed = model.replace(transformer=model.transformer.clone(config=config))
  session = stream.Session(changed.transformer, changed.params)
  ids = prompt(6)
  for _ in range(2):
    new = streamed(session, ids, NEW)
    assert new == generated(changed, ids)
    assert session.reused == 0
    ids = ids + new[:9]


@pytest.mark.parametrize(
  ("ids", "new", "message"),
  [([], 4, "no tokens"), ([5] * 1020, 5, "exceed the model's 1024 positions")],
)
def test_bad_prompts_are_refused(session, ids, new, message):
  with pytest.raises(jaxpeft.InputError, match=message):
    next(session.tokens(ids, new))


# ---- text


def sentencepiece():
  """A tokenizer as Llama 2 has it: spaces in the pieces, bytes for rare characters."""
  words = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), *"▁ab", "▁a", "b▁", "▁▁"]
  core = tokenizers.Tokenizer(
    models.BPE({w: i for i, w in enumerate(words)}, [], byte_fallback=True)
  )
  core.decoder = decoders.Sequence(
    [
      decoders.Replace("▁", " "),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(" ", 1, 0),
    ]
  )
  return core


class Letters:
  """A tokenizer whose 64 tokens are letters."""

  eos_ids, core = (), tokenizers.Tokenizer(models.BPE())

  def encode(self, text, bos):
    return [ord(x) % 60 for x in text]

  def decode(self, ids):
    return "".join(chr(65 + i) for i in ids)


class Core:
  """The part of a `Tokenizer` that streaming needs."""

  def __init__(self, core):
    self.core = core

  def decode(self, ids):
    return self.core.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_pieces_are_the_whole_and_never_change(model, kind):
  core = model.tokenizer.core if kind == "bytes" else sentencepiece()
  size, rng = core.get_vocab_size(), np.random.default_rng(0)
  encoded = [
    core.encode("Ein Bär - 日本 🦙👍 fin", add_special_tokens=False).ids,
    *(rng.integers(0, size, 40).tolist() for _ in range(20)),
  ]
  for ids in encoded:
    for step in (1, 3):
      chunks = [ids[i : i + step] for i in range(0, len(ids), step)]
      pieces = list(stream.text(Core(core), chunks))
      assert "".join(pieces) == core.decode(ids, skip_special_tokens=True)
      assert all(pieces)


def test_incomplete_characters_wait_and_the_rest_does_not(model):
  core = Core(model.tokenizer.core)
  ids = core.core.encode("Bär 日!", add_special_tokens=False).ids
  shown, pieces = "", []
  for piece in stream.text(core, ([i] for i in ids)):
    shown += piece
    pieces.append(piece)
    assert "\ufffd" not in piece
  assert len(pieces) > 4, pieces


def test_pieces_come_as_soon_as_those_of_the_tokenizers_library(model):
  core = model.tokenizer.core
  ids = core.encode("Zwölf Bären 🥊 - 9 + 3 = 12", add_special_tokens=False).ids
  theirs, given, sent = decoders.DecodeStream(skip_special_tokens=True), [""], [""]

  def chunks():
    for i in ids:
      sent.append(sent[-1] + (theirs.step(core, i) or ""))
      given.append(given[-1])
      yield [i]

  for piece in stream.text(Core(core), chunks()):
    given[-1] += piece
  assert given == sent


def test_a_model_streams_the_text_that_it_generates(model):
  small = model.replace(tokenizer=Letters())
  (want,) = small.generate(["some text"], max_new_tokens=NEW)
  pieces = list(small.stream("some text", max_new_tokens=NEW))
  assert "".join(pieces) == want
  assert len(pieces) > 1


@pytest.mark.slow
def test_on_a_mesh_it_gives_the_same(model):
  with jax.set_mesh(jaxpeft.mesh(data=1, fsdp=1, tensor=2)):
    session = stream.Session(model.transformer, sharding.place(model.params))
    assert streamed(session, prompt(10), NEW) == generated(model, prompt(10))
