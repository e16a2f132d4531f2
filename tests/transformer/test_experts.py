"""A mixture of experts, against the definition: every expert on every token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft
from jaxpeft import model, tree
from jaxpeft.quantization import nf4
from jaxpeft.transformer import experts, layers
from jaxpeft.transformer.config import ModelConfig
from jaxpeft.transformer.decoder import Transformer
from tests.parallel.test_sharding import compare
from tests.support.meshes import make_mesh
from tests.support.methods import ADAPTERS

LINEARS = "layers_.*/(attn|experts)/.*"
CONFIG = ModelConfig(
  family="mixtral", vocab_size=64, width=64, depth=2, heads=4, kv_heads=4, head_dim=16,
  ff=128, max_positions=128, experts=4, experts_per_token=2,
)  # fmt: skip


def by_definition(c, x, router, weights, feed_forward):
  """What `experts.mix` computes, without blocks."""
  rows = x.reshape(-1, x.shape[-1])
  expert, share = experts.route(c, rows, router)
  each = jnp.stack([
    feed_forward(rows, jax.tree.map(lambda w, e=e: w[e], weights))
    for e in range(c.experts)
  ])  # fmt: skip
  chosen = jnp.take_along_axis(each.swapaxes(0, 1), expert[..., None], axis=1)
  return (chosen * share[..., None]).sum(1).reshape(x.shape)


def tokens(shape, seed=0):
  return np.random.default_rng(seed).integers(3, 64, shape)


def random_theta(params):
  """The params with a theta that changes what the model says."""
  theta, frozen = tree.partition(params, tree.trainable_mask(params))
  rng = np.random.default_rng(0)
  theta = jax.tree.map(
    lambda x: x + 0.05 * rng.normal(size=x.shape).astype("f4"), theta
  )
  return tree.combine(theta, frozen)


@pytest.mark.parametrize("skew", [0.0, 8.0], ids=["even", "one-expert-takes-most"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 7), (2, 100)])
@pytest.mark.parametrize(("count", "chosen"), [(4, 2), (8, 1), (33, 5)])
def test_blocks_lose_and_mix_nothing(count, chosen, shape, skew):
  c = ModelConfig(**vars(CONFIG) | dict(experts=count, experts_per_token=chosen))
  rng = np.random.default_rng(count)
  x = jnp.asarray(rng.normal(size=(*shape, 8)), jnp.float32)
  router = jnp.asarray(rng.normal(size=(8, count)), jnp.float32)
  x = x.at[..., 0].set(1.0)  # the router's first row is then a bias
  router = router.at[0, count // 2].add(skew)
  w = jnp.asarray(rng.normal(size=(count, 8, 8)), jnp.float32)
  feed_forward = lambda x, w: jnp.tanh(x @ w)  # noqa: E731
  want = by_definition(c, x, router, w, feed_forward)
  got = jax.jit(lambda x: experts.mix(c, x, router, w, feed_forward))(x)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_few_blocks_are_computed():
  """The work is that of the chosen experts, not of all."""
  rows = []

  def feed_forward(x, w):
    rows.append(x.shape[0])
    return x @ w

  c = ModelConfig(**vars(CONFIG) | dict(experts=64, experts_per_token=2))
  x, w = jnp.zeros((1, 1024, 8)), jnp.zeros((64, 8, 8))
  shapes = jax.make_jaxpr(
    lambda: experts.mix(c, x, jnp.zeros((8, 64)), w, feed_forward)
  )
  scan = next(e for e in shapes().eqns if e.primitive.name == "scan")
  assert rows[0] * scan.params["length"] <= 2 * (2 * 1024)  # all experts: 64 * 1024


SOME = [
  ("lora", "nf4"),
  ("dora", ""),
  ("svft-banded", "nf4"),
  ("vera", ""),
  ("full", ""),
]
OTHERS = [(name, "" if quantize else "nf4") for name, quantize in SOME]


@pytest.mark.parametrize(
  ("name", "quantize"),
  [*SOME, *(pytest.param(*x, marks=pytest.mark.slow) for x in OTHERS)],
)
def test_adapters_on_experts_merge_to_the_same_logits(name, quantize):
  net = Transformer(CONFIG)
  params = model.init(net, 0)
  params = nf4.quantize_tree(params) if quantize else params
  assert isinstance(params["layers_0"]["experts"]["up"], nf4.NF4) == bool(quantize)
  adapted = jaxpeft.adapt(params, {LINEARS: ADAPTERS[name]}, jax.random.key(0))
  adapted = random_theta(adapted)
  x = tokens((2, 20))
  got = net.apply({"params": adapted}, x)
  merged = net.apply({"params": jaxpeft.merge(adapted, "float32")}, x)
  np.testing.assert_allclose(got, merged, atol=2e-4)
  assert np.abs(got - net.apply({"params": params}, x)).max() > 0.01


def test_gradients_are_those_of_the_definition(monkeypatch):
  net, plain = (Transformer(CONFIG, remat=remat) for remat in ("layer", "none"))
  params = random_theta(
    jaxpeft.adapt(model.init(net, 0), {LINEARS: ADAPTERS["lora"]}, jax.random.key(0))
  )
  theta, frozen = tree.partition(params, tree.trainable_mask(params))
  x = tokens((2, 20))

  def grad(net):
    def loss(theta):
      return jnp.mean(net.apply({"params": tree.combine(theta, frozen)}, x) ** 2)

    return jax.jit(jax.grad(loss))(theta)

  def defined(*args):
    traced.append(args)
    return by_definition(*args)

  got, traced = grad(net), []
  monkeypatch.setattr(layers.experts, "mix", defined)
  want = grad(plain)
  assert traced, "or both would be what was traced before"
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max() + 1e-9)


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 8, 1)])
def test_a_mesh_trains_experts_as_one_device(sizes):
  net = Transformer(CONFIG, remat="layer")
  params = nf4.quantize_tree(model.init(net, 0))
  params = jaxpeft.adapt(params, {LINEARS: jaxpeft.LoRA()}, jax.random.key(0))
  compare(net, params, make_mesh(sizes))
