"""The base model inside an adapted tree, which DPO compares with."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft
from jaxpeft import adapters, tree
from jaxpeft.adapters import dropout
from jaxpeft.errors import InputError
from jaxpeft.linear import dense, is_node
from jaxpeft.quantization import nf4
from tests.support.methods import ADAPTERS, perturbed, weight

W = jnp.stack([weight((24, 40), seed) for seed in (0, 1)])
PARAMS = {"layers_0": {"attn": {"q": W}}, "norm": jnp.ones(24)}
GRADIENTS = {"layers_0/attn/q": weight((2, 24, 40), 5)}


def adapted(adapter, params=PARAMS):
  """The tree with an adapter whose theta is away from its start."""
  key = jax.random.key(0)
  return moved(jaxpeft.adapt(params, {"layers_.*": adapter}, key, GRADIENTS))


def moved(params):
  """The tree with every theta away from its start."""
  trainable, frozen = tree.partition(params, tree.trainable_mask(params))
  return tree.combine(perturbed(trainable), frozen)


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_reference_of_every_method_is_the_base(name):
  """Exactly where W is kept; to rounding where its factors are. None for the others."""
  params = adapted(ADAPTERS[name])
  node = params["layers_0"]["attn"]["q"]
  identity = node.adapter.identity(node.frozen, node.theta)
  assert (identity is not None) == ADAPTERS[name].has_identity
  if not ADAPTERS[name].has_identity:
    about = f"{type(ADAPTERS[name]).__name__} on layers_0/attn/q"
    with pytest.raises(InputError, match=re.escape(about)):
      adapters.reference(params)
    return
  base = adapters.reference(params)
  got = base["layers_0"]["attn"]["q"]
  assert base["norm"] is params["norm"]
  assert adapters.is_adapted(got) == ("w" not in node.frozen)
  if "w" in node.frozen:
    np.testing.assert_array_equal(got, W)
    got = dataclasses.replace(node, theta=identity)
  for layer in range(2):  # also what `identity` says, where W itself is taken
    one = jax.tree.map(lambda x: x[layer], got)  # noqa: B023
    np.testing.assert_allclose(one.dense(), W[layer], atol=2e-6)
  assert not np.allclose(adapters.merge(params)["layers_0"]["attn"]["q"], W, atol=1e-2)


def test_over_4_bits_it_is_the_base_in_4_bits():
  base = {"layers_0": {"attn": {"q": weight((2, 64, 64))}}}
  base = nf4.quantize_tree(base)
  assert is_node(base["layers_0"]["attn"]["q"])
  got = adapters.reference(adapted(ADAPTERS["dora"], base))
  jax.tree.map(np.testing.assert_array_equal, got, base)


def test_it_has_no_gradient_and_copies_no_weight():
  params = adapted(ADAPTERS["lora"])

  def value(params):
    found = adapters.reference(params)
    leaves = jax.tree.leaves(found, is_leaf=is_node)
    return sum(jnp.sum(dense(x)) for x in leaves)

  grads = jax.grad(value)(params)
  assert not any(np.any(x) for x in jax.tree.leaves(grads))
  lowered = jax.make_jaxpr(adapters.reference)(params)
  assert {eqn.primitive.name for eqn in lowered.eqns} <= {"stop_gradient"}


def test_it_has_no_dropout():
  params = adapted(jaxpeft.LoRA(rank=4, dropout=0.5))
  shaken = dropout.with_keys(params, jax.random.key(0))
  assert any("drop" in path for path in tree.flatten(shaken))
  got = adapters.reference(shaken)
  np.testing.assert_array_equal(got["layers_0"]["attn"]["q"], W)


def test_several_adapters_have_no_reference():
  lora = adapted(ADAPTERS["lora"])
  both = jaxpeft.attach(jaxpeft.attach(PARAMS, "a", lora), "b", lora)
  with pytest.raises(InputError, match="several adapters are attached"):
    adapters.reference(both)
