"""The engine: answers that depend on their jobs alone, however rows are filled."""

import jax
import numpy as np
import pytest

import jaxpeft
from jaxpeft.errors import InputError
from jaxpeft.generation import decode, engine, lookup, pool, score
from jaxpeft.generation.ask import LocalAsk, Request
from jaxpeft.generation.engine import End, Job
from jaxpeft.generation.sampling import Sampling

STOP = (5, 17, 30)
NEW = 24
ENDS = [End(frozenset(STOP))]


@pytest.fixture(scope="module")
def model():
  return jaxpeft.load("embedded", dtype="float32")


@pytest.fixture(scope="module")
def rows():
  """Prompts of many lengths; some share a long beginning, and two are equal."""
  rng = np.random.default_rng(0)
  shared = rng.integers(3, 400, 40).tolist()
  out = [rng.integers(3, 400, n).tolist() for n in rng.integers(2, 60, 10)]
  out += [shared + rng.integers(3, 400, n).tolist() for n in (1, 5, 9, 30)]
  return [*out, out[0], out[0]]


def keys(count, seed=5):
  return np.asarray(jax.random.key_data(jax.random.split(jax.random.key(seed), count)))


def jobs_of(rows, temperature=1.0, new=NEW):
  return [
    Job(r, new, k, temperature) for r, k in zip(rows, keys(len(rows)), strict=True)
  ]


def draw(model, jobs, ends=ENDS, sampling=Sampling(), **options):
  out = engine.draw(model.transformer, model.params, jobs, ends, sampling, **options)
  return [x.tokens[:-1] if x.ended else x.tokens for x in out]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_tokens_are_those_of_decoding_a_fixed_batch(model, rows, temperature):
  want = decode.generate(
    model.transformer, model.params, rows, NEW, STOP, Sampling(temperature), seed=5
  )
  for options in (dict(), dict(batch_size=3), dict(batch_size=3, drafts=2)):
    assert draw(model, jobs_of(rows, temperature), **options) == want


def test_an_answer_depends_on_its_key_and_not_on_its_place(model, rows):
  jobs = jobs_of(rows)
  want = draw(model, jobs)
  order = np.random.default_rng(1).permutation(len(jobs))
  got = draw(model, [jobs[i] for i in order], batch_size=5)
  assert got == [want[i] for i in order]
  other = [job._replace(key=k) for job, k in zip(jobs, keys(len(jobs), 6), strict=True)]
  assert draw(model, other) != want


def test_every_row_has_a_limit_a_temperature_and_an_end_of_its_own(model, rows):
  jobs = jobs_of(rows[:6], 0.0)
  whole = draw(model, jobs, [End(frozenset())])
  own = [job._replace(new=n) for job, n in zip(jobs, (1, 2, 7, NEW, 3, 5), strict=True)]
  ends = [End(frozenset()), End(frozenset({whole[3][4]}))]
  own[3] = own[3]._replace(end=1)
  own[4] = own[4]._replace(temperature=1.0)
  got = draw(model, own, ends, batch_size=2)
  for i in (0, 1, 2, 5):
    assert got[i] == whole[i][: own[i].new]
  assert got[3] == whole[3][: whole[3].index(whole[3][4])]
  assert got[4] == draw(model, [jobs[4]._replace(new=3, temperature=1.0)], ends)[0]


def test_logprobs_are_those_of_the_whole_text(model, rows):
  jobs = jobs_of(rows[:8])
  for drafts in (0, 3):
    out = engine.draw(
      model.transformer, model.params, jobs, ENDS, batch_size=3, drafts=drafts
    )
    for job, got in zip(jobs, out, strict=True):
      ((want,),) = score.score(
        model.transformer, model.params, [list(job.prompt)], [[got.tokens]]
      )
      assert len(got.logprobs) == len(got.tokens)
      assert got.logprobs.sum() == pytest.approx(want, abs=1e-3)


def test_a_free_row_takes_the_next_prompt_while_others_go_on(model, rows, monkeypatch):
  limits = [40, *[2] * 8]
  jobs = [
    Job(rows[i], n, k) for i, (n, k) in enumerate(zip(limits, keys(9), strict=True))
  ]
  seen = []
  admit = engine._Work._admit

  def spy(self, jobs, taken, *rest):
    seen.append((list(self.jobs), taken))
    return admit(self, jobs, taken, *rest)

  monkeypatch.setattr(engine._Work, "_admit", spy)
  draw(model, jobs, [End(frozenset())], batch_size=2)
  assert any(0 in there for there, _ in seen[1:]), "the long one was alone"
  assert sum(len(taken) for _, taken in seen) == 9


def test_copies_of_a_prompt_and_common_beginnings_are_read_once(
  model, rows, monkeypatch
):
  shapes = []
  admit, prefix = pool.admit, pool.read_prefix

  def spy(*args):
    shapes.append(args[3].tokens.shape)
    return admit(*args)

  def spy_prefix(*args):
    shapes.append(("prefix", int(args[3])))
    return prefix(*args)

  monkeypatch.setattr(pool, "admit", spy)
  monkeypatch.setattr(pool, "read_prefix", spy_prefix)
  draw(model, jobs_of([rows[0]] * 16))
  assert [shape[0] for shape in shapes] == [1]
  shapes.clear()
  draw(model, jobs_of(rows[10:14]))
  assert shapes[0] == ("prefix", 40)
  assert shapes[1][1] < 40


def test_a_stop_text_ends_an_answer_and_is_left_out(model):
  words = model.tokenizer
  ask = LocalAsk(model.transformer, model.params, words, NEW)
  prompt = "Question: 12+13?\nAnswer:"
  (free,) = ask([Request(prompt)])
  stop = free.text[3:6]  # several tokens of the toy, which has one for each digit
  short, limited, both = ask([
    Request(prompt, stop=(stop,)),
    Request(prompt, max_new_tokens=2),
    Request(prompt, stop=("never", stop[0])),
  ])  # fmt: skip
  assert short.text == free.text[: free.text.index(stop)]
  assert short.ended
  ids = words.encode(prompt + short.text + stop, bos=True)
  assert short.spent == len(ids) - short.prompt_tokens
  assert (limited.tokens, limited.spent, limited.ended) == (2, 2, False)
  assert both.text == free.text[: free.text.index(stop[0])]


def test_requests_with_keys_have_texts_of_their_own(model):
  ask = LocalAsk(model.transformer, model.params, model.tokenizer, 12, seed=3)
  asked = [Request("Question:", temperature=1.0, key=(0, c, 0)) for c in range(6)]
  texts = [reply.text for reply in ask(asked)]
  assert len(set(texts)) > 3
  alone = [ask([request])[0].text for request in reversed(asked)]
  assert alone[::-1] == texts
  other = LocalAsk(model.transformer, model.params, model.tokenizer, 12, seed=4)
  assert [reply.text for reply in other(asked)] != texts
  with pytest.raises(InputError, match="temperature -1"):
    ask([Request("a", temperature=-1.0)])


def test_a_job_that_does_not_fit_is_bad_input(model):
  most = model.config.max_positions
  with pytest.raises(InputError, match="positions"):
    draw(model, [Job([3] * 8, most - 8, [0, 0]), Job([3] * 9, most - 8, [0, 0])])


def test_lookup_guesses_what_followed_the_last_two_tokens():
  text = np.array([[7, 1, 2, 9, 8, 1, 2, 0], [4, 4, 5, 6, 0, 0, 0, 0]], np.int32)
  got = lookup.lookup(text, np.array([6, 3]), 2)
  assert got[0].tolist() == [9, 8]
  assert got[1].tolist() == [4, 4]  # nothing repeats


def test_right_guesses_save_steps(model, monkeypatch):
  """A text that repeats itself needs fewer steps, and stays the same."""
  prompt = model.tokenizer.encode("1+2=3 1+2=3 1+2=3 1+2=3 1+2=", bos=True)
  counts, jobs = [], [Job(prompt, NEW, np.zeros(2, np.uint32))]
  real = pool.go_on

  def one_step(*args):
    counts[-1] += 1
    return real(*args[:-1], 1)

  monkeypatch.setattr(pool, "go_on", one_step)
  texts = []
  for drafts in (0, 3):
    counts.append(0)
    texts.append(draw(model, jobs, [End(frozenset())], drafts=drafts))
  assert texts[0] == texts[1]
  assert counts[1] < counts[0]
