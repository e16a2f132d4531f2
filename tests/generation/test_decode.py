"""Decoding: cache, stop tokens, padding, sampling; parity is in test_transformer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft
from jaxpeft.generation import decode, engine
from jaxpeft.generation.engine import End, Job
from jaxpeft.generation.sampling import Sampling, choose, seen_tokens


@pytest.fixture(scope="module")
def model():
  return jaxpeft.load("embedded", dtype="float32")


def prompts(count):
  rng = np.random.default_rng(0)
  return [rng.integers(3, 400, n).tolist() for n in rng.integers(2, 20, count)]


def new_tokens(model, rows, new=10, **kwargs):
  return decode.generate(model.transformer, model.params, rows, new, **kwargs)


def test_the_cache_gives_what_the_whole_text_gives(model):
  (new,) = new_tokens(model, [prompts(1)[0]], 12)
  text = [*prompts(1)[0], *new]
  logits = model(np.array([text]))[0]
  want = logits[len(text) - 13 : -1].argmax(-1).tolist()
  assert new == want


def test_rows_do_not_depend_on_the_batch(model):
  rows = prompts(7)
  hot = Sampling(temperature=1.0)
  for sampling in (Sampling(), hot):
    whole = new_tokens(model, rows, sampling=sampling, seed=5)
    assert new_tokens(model, rows, sampling=sampling, seed=5, batch_size=3) == whole
  assert whole != new_tokens(model, rows, sampling=hot, seed=6)


def test_a_stop_token_ends_a_row_and_is_left_out(model):
  rows = prompts(4)
  free = new_tokens(model, rows, 10)
  stop = free[0][4]
  cut = new_tokens(model, rows, 10, stop_ids=(stop,))
  for a, b in zip(free, cut, strict=True):
    assert b == (a[: a.index(stop)] if stop in a else a)


def test_the_likeliest_token_is_all_that_a_cold_or_narrow_draw_gives(model):
  logits = jax.random.normal(jax.random.key(0), (64, 50)) * 3
  keys = jax.random.split(jax.random.key(1), 64)
  want = logits.argmax(-1)
  for sampling in (Sampling(1e-4), Sampling(2.0, top_k=1), Sampling(2.0, top_p=1e-6)):
    np.testing.assert_array_equal(choose(keys, logits, sampling), want)


@pytest.mark.parametrize(
  ("sampling", "kept"),
  [
    (Sampling(1.0), 4),
    (Sampling(1.0, top_k=2), 2),
    (Sampling(1.0, top_p=0.79), 2),
    (Sampling(1.0, top_p=0.81), 3),
  ],
)
def test_draws_follow_the_truncated_distribution(sampling, kept):
  p = np.array([0.08, 0.5, 0.3, 0.12])
  logits = jnp.broadcast_to(jnp.log(p), (20_000, 4))
  keys = jax.random.split(jax.random.key(0), 20_000)
  got = np.bincount(choose(keys, logits, sampling), minlength=4) / 20_000
  want = np.where(np.argsort(np.argsort(-p)) < kept, p, 0)
  np.testing.assert_allclose(got, want / want.sum(), atol=0.015)


def test_generate_gives_text(model):
  (text,) = model.generate(["Question: 12+13?\nAnswer:"], max_new_tokens=40)
  assert "12+13=<<12+13=25>>25" in text
  assert text.endswith("#### 25")


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda m: new_tokens(m, [[]]), "prompt 0 has no tokens"),
    (lambda m: new_tokens(m, [[5] * 1000], 100), "exceed the model's 1024 positions"),
    (lambda m: Sampling(-1.0), "temperature"),
    (lambda m: Sampling(top_p=0.0), "top_p"),
    (lambda m: Sampling(top_k=-1), "top_k"),
  ],
)
def test_bad_arguments_are_refused(model, call, message):
  with pytest.raises(jaxpeft.InputError, match=message):
    call(model)


def test_prompts_of_nearby_lengths_share_a_program(model):
  before = decode.decode._cache_size()
  for n in (33, 40, 47):
    new_tokens(model, [[5] * n], 3)
  assert decode.decode._cache_size() == before + 1


@pytest.mark.parametrize(("min_p", "penalty"), [(0.1, 1.0), (0.0, 1.3), (0.05, 0.7)])
def test_min_p_and_the_penalty_are_those_of_transformers(min_p, penalty):
  transformers = pytest.importorskip("transformers")
  torch = pytest.importorskip("torch")
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(4, 50)).astype(np.float32) * 3
  text = rng.integers(0, 50, (4, 12))
  ids, want = torch.tensor(text), torch.tensor(logits)
  processors = [transformers.RepetitionPenaltyLogitsProcessor(penalty)]
  if min_p:
    processors.append(transformers.MinPLogitsWarper(min_p))
  for processor in processors:
    want = processor(ids, want)
  share = torch.softmax(want, -1).numpy()
  seen = seen_tokens(jnp.array(text), jnp.ones(text.shape, bool), 50)
  sampling = Sampling(1.0, min_p=min_p, repetition_penalty=penalty)
  some = jax.random.split(jax.random.key(2), 20_000)
  draws = jax.vmap(
    lambda key: choose(jax.random.split(key, 4), jnp.array(logits), sampling, seen)
  )(some)
  got = (
    np.stack([np.bincount(row, minlength=50) for row in np.asarray(draws).T]) / 20_000
  )
  assert not got[share == 0].any()
  np.testing.assert_allclose(got, share, atol=0.015)


def test_the_penalty_of_an_answer_counts_its_own_tokens(model):
  row = prompts(1)[0]
  hard = Sampling(repetition_penalty=1e6)
  (new,) = new_tokens(model, [row], 16, sampling=hard)
  assert len(set(new)) == 16
  assert not set(new) & set(row)
  jobs = [Job(row, 16, np.zeros(2, np.uint32))]
  for drafts in (0, 2):
    (got,) = engine.draw(
      model.transformer, model.params, jobs, [End(frozenset())], hard, drafts=drafts
    )
    assert got.tokens == new
