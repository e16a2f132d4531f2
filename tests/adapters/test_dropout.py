"""Dropout of low-rank updates: masks, formulas, and who sees them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft
from jaxpeft import tree
from jaxpeft.adapters import LoRAGA, dropout
from jaxpeft.errors import InputError
from jaxpeft.objectives import Supervised
from jaxpeft.objectives.token_selection import Selection
from jaxpeft.training import step

MATCH = "layers_.*/(attn|mlp)/.*"


def adapted(method, quantize="", remat="products", groups=()):
  """(transformer, params) of the toy, adapted, with an update that is not zero."""
  model = jaxpeft.load("embedded", "float32", groups, remat, quantize=quantize)
  params = jaxpeft.adapt(model.params, {MATCH: method}, jax.random.key(0))
  trainable, frozen = tree.partition(params, tree.trainable_mask(params))
  trainable = jax.tree.map(lambda x: x + 0.02, trainable)
  return model.transformer, trainable, frozen


def batch(key=None):
  tokens = np.random.default_rng(0).integers(5, 300, (2, 24)).astype(np.int32)
  out = dict(
    tokens=tokens, targets=np.roll(tokens, -1, 1), weights=np.ones((2, 24), np.float32),
    position=np.tile(np.arange(24, dtype=np.int32), (2, 1)),
    segment=np.ones((2, 24), np.int32),
  )  # fmt: skip
  return out | ({} if key is None else dict(key=jax.random.key(key)))


def loss(net, trainable, frozen, key=None, objective=Supervised()):
  total, (count, _) = jax.jit(step.make_loss(net, objective))(
    trainable, frozen, batch(key)
  )
  return float(total / count)


@pytest.mark.parametrize("name", ["LoRA", "DoRA", "LoRAGA"])
def test_the_update_sees_dropped_inputs_and_the_base_does_not(name):
  rng = np.random.default_rng(0)
  w, x = rng.normal(size=(32, 24)), rng.normal(size=(50, 32))
  rate, c = 0.25, 8.0 / 4
  adapter = dict(LoRA=jaxpeft.LoRA, DoRA=jaxpeft.DoRA, LoRAGA=LoRAGA)[name](
    rank=4, alpha=8.0, dropout=rate
  )
  gradient = (jnp.asarray(rng.normal(size=w.shape)),) if name == "LoRAGA" else ()
  frozen, theta = adapter.init(jax.random.key(0), jnp.float32(w), *gradient)
  theta = {k: v + 0.3 for k, v in theta.items()}
  frozen = frozen | dict(drop=jax.random.key_data(jax.random.key(7)))
  kept = np.asarray(jax.random.bernoulli(jax.random.key(7), 1 - rate, x.shape))
  h = np.where(kept, x / (1 - rate), 0)
  a, b = np.asarray(theta["a"]), np.asarray(theta["b"])
  if name == "LoRA":
    want = x @ w + c * h @ a @ b
  elif name == "LoRAGA":
    want = x @ w + h @ (adapter.merge(frozen, theta) - w)
  else:  # PEFT's tuners/lora/dora.py: result + (f - 1) base(h) + f c lora(h)
    f = np.asarray(theta["m"]) / np.linalg.norm(w + c * a @ b, axis=0)
    want = x @ w + (f - 1) * (h @ w) + f * c * (h @ a @ b)
  got = adapter.apply(jnp.float32(x), frozen, theta)
  np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-3)
  del frozen["drop"]
  merged = x @ np.asarray(adapter.merge(frozen, theta))
  got = adapter.apply(jnp.float32(x), frozen, theta)
  np.testing.assert_allclose(got, merged, rtol=2e-4, atol=2e-3)


def test_the_share_that_is_dropped_and_its_mean():
  x = jnp.ones((400, 300))
  frozen = dict(drop=jax.random.key_data(jax.random.key(0)))
  y = np.asarray(dropout.dropped(x, frozen, 0.1))
  assert np.mean(y == 0) == pytest.approx(0.1, abs=0.003)
  assert y.mean() == pytest.approx(1, abs=0.005)
  assert dropout.dropped(x, {}, 0.1) is x


def test_every_weight_layer_and_step_has_masks_of_its_own():
  _, trainable, frozen = adapted(jaxpeft.LoRA(dropout=0.5))
  params = tree.combine(trainable, frozen)

  def keys(number):
    flat = tree.flatten(dropout.with_keys(params, jax.random.key(number)))
    return [
      tuple(k) for p, x in flat.items() if p.endswith("drop") for k in np.array(x)
    ]

  depth, weights = 4, 7
  assert len(set(keys(0))) == len(keys(0)) == depth * weights
  assert not set(keys(0)) & set(keys(1))
  assert keys(0) == keys(0)


@pytest.mark.parametrize(
  ("remat", "quantize"),
  [
    pytest.param("none", "", marks=pytest.mark.slow),
    ("layer", ""),
    ("products", "nf4"),
  ],
)
def test_a_loss_with_dropout_is_repeatable_and_differs_from_one_without(
  remat, quantize
):
  net, trainable, frozen = adapted(jaxpeft.LoRA(dropout=0.3), quantize, remat)
  assert loss(net, trainable, frozen, 1) == loss(net, trainable, frozen, 1)
  assert loss(net, trainable, frozen, 1) != loss(net, trainable, frozen, 2)
  bare = jax.tree.map(lambda x: x, frozen)
  assert loss(net, trainable, frozen) == loss(net, *_without(trainable, bare))


def test_rematerialization_draws_the_same_masks():
  """A gradient with other masks in the backward pass would not be that of the loss."""
  net, trainable, frozen = adapted(jaxpeft.LoRA(dropout=0.3), remat="none")
  grad = jax.jit(
    jax.grad(
      lambda t, net: step.make_loss(net, Supervised())(t, frozen, batch(3))[0]
    ), static_argnums=1,
  )  # fmt: skip
  want, got = grad(trainable, net), grad(trainable, net.clone(remat="products"))
  for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_token_selection_and_accumulation_work_with_dropout():
  net, trainable, frozen = adapted(jaxpeft.LoRA(dropout=0.3))
  some = Supervised(selection=Selection(0.5))
  assert np.isfinite(loss(net, trainable, frozen, 1, some))
  from jaxpeft.training import optimizer

  tx, _ = optimizer.make(5, **jaxpeft_optim())
  fn = step.make_step(net, tx)
  pair = {k: np.stack([v, v]) for k, v in batch().items()}
  _, metrics = fn(step.init_state(trainable, tx), frozen, pair)
  one = loss(net, trainable, frozen, None)
  assert float(metrics["loss"]) != one, "training has dropout"
  assert abs(float(metrics["loss"]) - one) < 0.5


def jaxpeft_optim():
  from jaxpeft import config

  return config.base().optim.to_dict()


def _without(trainable, frozen):
  def one(node):
    adapter = dataclasses.replace(node.adapter, dropout=0.0)
    return dataclasses.replace(node, adapter=adapter)

  return [
    jax.tree.map(lambda n: one(n) if jaxpeft.adapters.is_adapted(n) else n, part,
                 is_leaf=jaxpeft.adapters.is_adapted)
    for part in (trainable, frozen)
  ]  # fmt: skip


def test_bad_rates():
  with pytest.raises(InputError, match=r"dropout 1\.0 is not in \[0, 1\)"):
    adapted(jaxpeft.LoRA(dropout=1.0))
