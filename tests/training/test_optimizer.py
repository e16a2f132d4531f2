"""Learning-rate groups (LoRA+), scaled gradients (NoRA+), noise on embeddings."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpeft
from jaxpeft import config, tree
from jaxpeft.errors import InputError
from jaxpeft.objectives import Supervised
from jaxpeft.training import optimizer, scaled_gd
from jaxpeft.training import step as training
from jaxpeft.transformer import decoder
from tests.support.methods import LINEARS


def options(**changes):
  """config.optim with changes."""
  c = config.base().optim
  with c.unlocked():
    c.update(changes)
  return c


def split(adapter, seed=0):
  model = jaxpeft.load("embedded", dtype="float32")
  params = jaxpeft.adapt(model.params, {LINEARS: adapter}, jax.random.key(seed))
  return model, *jaxpeft.partition(params, jaxpeft.trainable_mask(params))


def noise(tree, seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), tree
  )


def test_a_group_has_its_own_learning_rate():
  _, theta, _ = split(jaxpeft.LoRA(rank=2))
  grads = [noise(theta, seed) for seed in range(3)]

  def run(**changes):
    tx, _ = optimizer.make(10, **options(weight_decay=0.1, **changes))
    state, x = tx.init(theta), theta
    for g in grads:
      updates, state = tx.update(g, state, x)
      x = optax.apply_updates(x, updates)
    return tree.flatten(x)

  plus = run(groups=dict(b=dict(match=".*/theta/b", times=16.0)), lr=1e-3)
  one, many = run(lr=1e-3), run(lr=16e-3)
  for path, x in plus.items():
    same = many if path.endswith("/b") else one
    np.testing.assert_allclose(x, same[path], atol=1e-6, err_msg=path)
  assert any(path.endswith("/b") for path in plus)


@pytest.mark.parametrize(
  ("groups", "message"),
  [
    (dict(x=dict(match=".*/theta/b")), "needs `match`"),
    (dict(x=dict(match="(", times=2)), "no regex"),
    (dict(x=dict(match="nothing", times=2)), "matches nothing"),
    (dict(x=dict(match=".*", times="x")), "is not above 0"),
    (dict(x=dict(match=".*", times=-1)), "is not above 0"),
    (dict(x=dict(match=".*", times=2), y=dict(match=".*/b", times=3)), "all match"),
  ],
)
def test_groups_that_do_not_fit_are_refused(groups, message):
  _, theta, _ = split(jaxpeft.LoRA(rank=2))
  with pytest.raises(InputError, match=message):
    optimizer.make(10, **options(groups=groups))[0].init(theta)


@pytest.mark.parametrize("name", ["lr", "final_lr", "clip_norm", "weight_decay"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_numbers_that_train_uphill_or_nothing_are_refused(name, value):
  with pytest.raises(InputError, match=rf"optim\.{name} {value} is not"):
    optimizer.make(10, **options(**{name: value}))


def test_scaled_gd_is_the_formula_of_the_published_code():
  rng = np.random.default_rng(0)
  theta = dict(a=rng.normal(size=(3, 8, 2)), b=rng.normal(size=(3, 2, 6)))
  theta = {"q": jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), theta)}
  grads = noise(theta, 1)
  tx = scaled_gd.scaled_gd()
  first, state = tx.update(grads, tx.init(theta), theta)
  second, _ = tx.update(grads, state, theta)
  np.testing.assert_array_equal(first["q"]["a"], grads["q"]["a"])
  for i in range(3):
    # There A is [r, in] and B [out, r], torch's way round.
    lora_a, lora_b = (np.asarray(theta["q"][n][i], np.float64).T for n in "ab")
    p = np.linalg.inv(lora_b.T @ lora_b + 1e-6 * np.eye(2))
    q = np.linalg.inv(lora_a @ lora_a.T + 1e-6 * np.eye(2))
    want_a = p @ np.asarray(grads["q"]["a"][i]).T / np.linalg.norm(p)
    want_b = np.asarray(grads["q"]["b"][i]).T @ q / np.linalg.norm(q)
    np.testing.assert_allclose(second["q"]["a"][i], want_a.T, atol=1e-4)
    np.testing.assert_allclose(second["q"]["b"][i], want_b.T, atol=1e-4)


def test_scaled_gd_trains_and_needs_factors():
  model, theta, frozen = split(jaxpeft.NoRA(rank=4, alpha=8.0))
  tx, _ = optimizer.make(10, **options(precondition="scaled_gd", lr=1e-2))
  state = training.init_state(theta, tx)
  step = training.make_step(model.transformer, tx)
  losses = []
  for _ in range(5):
    state, metrics = step(state, frozen, batch())
    losses.append(float(metrics["loss"]))
  assert losses[-1] < 0.9 * losses[0]
  assert step._cache_size() == 1
  _, theta, _ = split(jaxpeft.SVF())
  with pytest.raises(InputError, match="needs low-rank factors"):
    tx.init(theta)
  with pytest.raises(InputError, match=r"optim\.precondition"):
    optimizer.make(10, **options(precondition="scaled"))


def batch(rows=4, length=24):
  tokens = np.random.default_rng(0).integers(3, 400, (2, rows, length)).astype(np.int32)
  ones = np.ones(tokens.shape)
  return dict(
    tokens=tokens,
    targets=np.roll(tokens, -1, 2),
    weights=ones.astype(np.float32),
    position=np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape),
    segment=ones.astype(np.int32),
  )


def test_noise_on_embeddings_has_its_size_and_follows_seed_and_step():
  model, theta, frozen = split(jaxpeft.LoRA(rank=2))
  tx = optax.sgd(0.0)  # nothing moves, so that only the noise differs

  def losses(alpha, seed=0, steps=2):
    state = training.init_state(theta, tx)
    step = training.make_step(model.transformer, tx, Supervised(neftune=alpha), seed)
    out = []
    for _ in range(steps):
      state, metrics = step(state, frozen, batch())
      out.append(float(metrics["loss"]))
    return out

  plain = losses(0.0)
  assert plain[0] == plain[1]
  noisy = losses(5.0)
  assert noisy == losses(5.0), "the same seed gives the same noise"
  assert len({*plain, *noisy, *losses(5.0, seed=1)}) == 5
  # As if the embeddings had been moved by uniform noise of that size.
  net, rows = model.transformer, batch()["tokens"][0]
  params = jaxpeft.combine(theta, frozen)
  key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 2)[0]
  size = 5.0 / np.sqrt(24 * net.config.width)
  move = size * jax.random.uniform(key, (*rows.shape, net.config.width), minval=-1.0)
  stream = decoder.Stream(rows, decoder.full_rows(rows.shape), move)
  small = decoder.logits(net, params, decoder.hidden(net, params, stream))
  embed = params["embed"]
  one = {**params, "embed": jnp.concatenate([embed, (embed[rows] + move)[0]])}
  wide = net.clone(config=net.config.__class__(
    **{**vars(net.config), "vocab_size": embed.shape[0] + rows.shape[1]}
  ))  # fmt: skip
  moved = wide.apply({"params": one}, embed.shape[0] + np.arange(24)[None])
  chex.assert_trees_all_close(small[0], moved[0, :, : embed.shape[0]], atol=1e-4)
