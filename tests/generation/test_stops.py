"""Every token that ends a text ends it, not only the first one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft
from jaxpeft.generation import decode
from jaxpeft.generation.sampling import Sampling


@pytest.mark.parametrize("order", [1, -1])
def test_each_of_several_stop_tokens_ends_a_row(order):
  model = jaxpeft.load("embedded", dtype="float32")
  rng = np.random.default_rng(3)
  rows = [rng.integers(3, 400, n).tolist() for n in (5, 9, 12, 7)]
  free = decode.generate(model.transformer, model.params, rows, 8)
  first = free[0][3]
  second = next(x for row in free[1:] for x in row if x not in (first, *free[0]))
  stops = (first, second)[::order]
  cut = decode.generate(model.transformer, model.params, rows, 8, stop_ids=stops)
  for whole, got in zip(free, cut, strict=True):
    ends = [i for i, token in enumerate(whole) if token in stops]
    assert got == whole[: min(ends, default=8)]
  assert len(cut[0]) <= 3
  assert sum(map(len, cut[1:])) < sum(map(len, free[1:]))


def test_a_tokenizers_ends_all_stop_generate():
  model = jaxpeft.load("embedded", dtype="float32")
  (text,) = model.generate(["Tom has 3 apples."], max_new_tokens=6)
  ids = model.tokenizer.encode(text)
  tokenizer = model.tokenizer
  ends = (tokenizer.eos_ids[0], ids[2])
  other = model.replace(
    tokenizer=type(tokenizer)(**vars(tokenizer) | dict(eos_ids=ends))
  )
  assert len(other.generate(["Tom has 3 apples."], max_new_tokens=6)[0]) < len(text)


def test_each_token_has_a_draw_of_its_own():
  """With equal logits at each step, one key for all would repeat the same token."""
  model = jaxpeft.load("embedded", dtype="float32")
  zeros = jax.tree.map(jnp.zeros_like, model.params)
  hot = Sampling(temperature=1.0)
  new = decode.generate(model.transformer, zeros, [[5], [6]], 12, sampling=hot, seed=3)
  assert all(len(set(row)) > 8 for row in new)
  assert new[0] != new[1]
