"""The decoder against transformers, for every family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxpeft
from jaxpeft.generation import decode
from jaxpeft.objectives import supervised
from jaxpeft.transformer import decoder
from jaxpeft.transformer.attention import Where
from jaxpeft.transformer.decoder import Stream, full_rows
from jaxpeft.transformer.rope import needs_length
from tests.support.families import FAMILIES, make, save

# float32 on both sides; logits are of size one, so this is rounding over three layers.
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
  """(transformers' model, ours) with the same random weights."""
  directory = tmp_path_factory.mktemp(request.param)
  theirs = save(request.param, directory)
  return theirs, jaxpeft.load(str(directory), dtype="float32")


def tokens(shape, seed=0):
  return np.random.default_rng(seed).integers(3, 97, shape)


def test_logits_equal_transformers(pair):
  theirs, ours = pair
  x = tokens((2, 40))
  with torch.no_grad():
    want = theirs(torch.tensor(x)).logits.numpy()
  got = ours(x)
  assert got.dtype == jnp.float32
  assert np.abs(want).max() > 0.5, "logits near zero would compare nothing"
  np.testing.assert_allclose(got, want, atol=TOLERANCE)


def test_left_padding_equals_transformers(pair):
  theirs, ours = pair
  x, mask = tokens((3, 24)), np.ones((3, 24), int)
  mask[1, :9], mask[2, :17] = 0, 0
  x[mask == 0] = 0
  positions = np.maximum(mask.cumsum(1) - 1, 0)
  with torch.no_grad():
    want = theirs(
      torch.tensor(x),
      attention_mask=torch.tensor(mask),
      position_ids=torch.tensor(positions),
    ).logits.numpy()
  got = np.asarray(ours(x, mask.astype(bool)))
  np.testing.assert_allclose(got[mask == 1], want[mask == 1], atol=TOLERANCE)


def test_attention_that_tokens_get_equals_transformers(pair):
  theirs, ours = pair
  x = tokens((2, 40))
  with torch.no_grad():
    layers = theirs(torch.tensor(x), output_attentions=True).attentions
  queries = [(layer > 0).any(1).sum(1) for layer in layers]  # that see each token
  want = sum(p.sum((1, 2)) / n for p, n in zip(layers, queries, strict=True))
  batch = dict(tokens=jnp.asarray(x)) | full_rows(x.shape)._asdict()
  got = jax.jit(lambda p: supervised.token_attention(ours.transformer, p, batch))(
    ours.params
  )
  np.testing.assert_allclose(got, want, rtol=1e-4)


def test_packed_rows_equal_separate_ones(pair):
  theirs, ours = pair
  lengths = (11, 20, 7)
  x = tokens((1, sum(lengths)))
  where = Where(
    jnp.concatenate([jnp.arange(n) for n in lengths])[None],
    jnp.repeat(jnp.arange(1, 4), jnp.array(lengths))[None],
  )
  got = ours.transformer.apply({"params": ours.params}, x, where)
  start = 0
  for n in lengths:
    with torch.no_grad():
      want = theirs(torch.tensor(x[:, start : start + n])).logits.numpy()
    np.testing.assert_allclose(got[:, start : start + n], want, atol=TOLERANCE)
    start += n


def test_greedy_generation_equals_transformers_token_for_token(pair):
  theirs, ours = pair
  # Beyond the original context, transformers changes frequencies while it generates and
  # leaves old keys in its cache. Ours are those of the final length from the start.
  lengths = (3, 5, 8) if needs_length(ours.config) else (5, 12, 19)
  prompts = [list(tokens(n, seed=n)) for n in lengths]
  got = decode.generate(ours.transformer, ours.params, prompts, 24, stop_ids=(2,))
  for prompt, new in zip(prompts, got, strict=True):
    want = theirs.generate(
      torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=2
    )[0, len(prompt) :].tolist()
    assert new == [t for t in want if t != 2]


@pytest.mark.parametrize("name", ["llama-dynamic", "phi3-long"])
def test_generation_beyond_the_original_context_uses_one_rope(name, tmp_path):
  save(name, tmp_path)
  ours = jaxpeft.load(str(tmp_path), dtype="float32")
  prompt, new = list(tokens(25, seed=1)), 12
  got = decode.generate(ours.transformer, ours.params, [prompt, prompt[:3]], new)
  length = jnp.array([len(prompt) + new])
  for _ in range(new):
    x = jnp.array([prompt])
    stream = Stream(x, full_rows(x.shape), length=length)
    hidden = decoder.hidden(ours.transformer, ours.params, stream)
    last = decoder.logits(ours.transformer, ours.params, hidden)[0, -1]
    prompt.append(int(last.argmax()))
  assert got[0] == prompt[25:]
  assert got[1] == decode.generate(ours.transformer, ours.params, [prompt[:3]], new)[0]


@pytest.mark.parametrize("groups", [(1, 2), (1, 1, 1)])
@pytest.mark.parametrize("name", ["llama", "gemma3", "mixtral", "smollm3"])
def test_groups_of_layers_give_the_same_logits(name, groups, tmp_path):
  save(name, tmp_path)
  x = tokens((2, 30))
  one = jaxpeft.load(str(tmp_path), dtype="float32")(x)
  several = jaxpeft.load(str(tmp_path), dtype="float32", groups=groups)
  assert sorted(k for k in several.params if k.startswith("layers")) == [
    f"layers_{i}" for i in range(len(groups))
  ]
  np.testing.assert_allclose(several(x), one, atol=1e-5)


@pytest.mark.parametrize("remat", ["products", "layer", "attention", "offload"])
def test_remat_changes_no_gradient(remat):
  model = jaxpeft.load("embedded", dtype="float32")
  x = jnp.asarray(tokens((2, 16)))

  def grads(remat):
    net = model.replace(transformer=model.transformer.clone(remat=remat)).transformer
    return jax.jit(jax.grad(lambda p: jnp.mean(net.apply({"params": p}, x) ** 2)))(
      model.params
    )

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(a).max()),
    grads("none"),
    grads(remat),
  )


def test_groups_of_layers_may_differ_in_remat():
  model = jaxpeft.load("embedded", dtype="float32", groups=(2, 2))
  x = jnp.asarray(tokens((2, 16)))

  def products(remat):
    net = model.transformer.clone(remat=remat)
    grad = jax.grad(lambda p: jnp.mean(net.apply({"params": p}, x) ** 2))
    return jax.jit(grad).lower(model.params).as_text().count("dot_general")

  none, some, all_ = (products(r) for r in ("none", "none,layer", "layer"))
  assert none < some < all_
  assert some - none == all_ - some


def test_later_tokens_change_nothing_before_them():
  model = jaxpeft.load("embedded", dtype="float32")
  a = tokens((1, 20))
  b = a.copy()
  b[0, 12:] = 5
  np.testing.assert_array_equal(model(a)[0, :12], model(b)[0, :12])


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_bfloat16_is_as_near_as_transformers_own(name, tmp_path):
  theirs = save(name, tmp_path)
  x = tokens((2, 32))
  with torch.no_grad():
    exact = theirs(torch.tensor(x)).logits.numpy()
    half = make(name).to(torch.bfloat16)(torch.tensor(x)).logits.float().numpy()
  ours = np.asarray(jaxpeft.load(str(tmp_path), dtype="bfloat16")(x))
  assert np.abs(ours - exact).mean() < 1.2 * np.abs(half - exact).mean()


def test_a_padded_row_is_finite():
  model = jaxpeft.load("embedded", dtype="float32")
  logits = model(tokens((2, 8)), np.zeros((2, 8), bool))
  assert np.isfinite(logits).all()
