"""Singular vectors in 4 bits beside the weight: exact at the start, small, the same."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxpeft
from jaxpeft import config, tree
from jaxpeft.adapters import svd
from jaxpeft.errors import InputError
from jaxpeft.linear import dense, linear
from jaxpeft.parallel import sharding
from jaxpeft.planning import memory
from jaxpeft.quantization import nf4
from tests.support.meshes import make_mesh
from tests.support.methods import perturbed, weight

ADAPTERS = {
  "svft-banded": jaxpeft.SVFT(off_diagonals=3, quantize="nf4"),
  "svft-rank": jaxpeft.SVFT("plain", rank=64, quantize="nf4"),
  "svf": jaxpeft.SVF(quantize="nf4"),
  "loraxs": jaxpeft.LoRAXS(rank=64, alpha=32.0, quantize="nf4"),
}
SOME = "layers_.*/(attn/q|mlp/(up|down))"  # wide, tall and square: few to decompose
KEY = jax.random.key(0)

each = pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)


def dequantized(frozen):
  """The same factors as arrays, over the same base."""
  return {k: x if k == "w" else dense(x) for k, x in frozen.items()}


@pytest.fixture(scope="module")
def quantized():
  return jaxpeft.load("embedded", dtype="float32", quantize="nf4")


def adapt(model, adapter, scale=0.02):
  """Its parameters adapted, theta moved by noise."""
  params = jaxpeft.adapt(model.params, {SOME: adapter}, KEY)
  theta, frozen = tree.partition(params, tree.trainable_mask(params))
  return tree.combine(perturbed(theta, scale=scale), frozen)


@pytest.mark.parametrize(
  ("name", "shape", "dtype", "in_4_bits"),
  [
    ("svft-banded", (128, 192), "float32", True),
    ("svft-banded", (192, 128), "bfloat16", False),
    ("svft-rank", (192, 128), "float32", False),
    ("svf", (128, 192), "float32", False),
    ("loraxs", (192, 128), "bfloat16", True),
  ],
)
def test_the_start_is_the_base_bit_for_bit(name, shape, dtype, in_4_bits):
  adapter = ADAPTERS[name]
  if name == "loraxs":  # to be compared with the exact factors
    adapter = dataclasses.replace(adapter, iterations=0)
  w = weight(shape).astype(dtype)
  w = nf4.quantize(w) if in_4_bits else w
  frozen, theta = adapter.init(KEY, w)
  x = jax.random.normal(jax.random.key(1), (2, 5, shape[0])).astype(dtype)
  np.testing.assert_array_equal(adapter.apply(x, frozen, theta), linear(x, w))
  whole = dense(w).astype("float32")
  np.testing.assert_array_equal(adapter.merge(frozen, theta), whole)
  u, s, vt = svd.svd(dense(w))
  u = u * s if isinstance(adapter, jaxpeft.LoRAXS) else u
  k = frozen["vt"].shape[0]
  for name, exact in (("u", u[:, :k]), ("vt", vt[:k])):
    node = frozen[name]
    assert isinstance(node, nf4.NF4)
    assert node.dtype == dtype
    # Of scales of scales, the last few are of less than 256.
    assert node.nbytes <= node.size * (4 + 8 / 64) / 8 + 4 * (node.size / 2**14 + 2)
    away = jnp.linalg.norm(node.dense() - exact) / jnp.linalg.norm(exact)
    assert 0.08 < float(away) < 0.1, "4 bits cost about 9 % of a normal's norm"


@each
def test_products_and_gradients_are_those_of_the_dequantized_factors(adapter):
  stack = jax.vmap(nf4.quantize)(jnp.stack([weight((128, 192), s) for s in (0, 1)]))
  tree = jaxpeft.adapt({"layers_0": {"attn": {"q": stack}}}, {".*": adapter}, KEY)
  node = tree["layers_0"]["attn"]["q"]
  theta, plain = perturbed(node.theta), dequantized(node.frozen)
  x = jax.random.normal(jax.random.key(1), (5, 128))

  @jax.jit
  def step(theta, frozen):
    @jax.checkpoint
    def layer(total, parts):
      y = adapter.apply(x, *parts)
      return total + jnp.square(y).mean(), y

    return jax.value_and_grad(
      lambda theta: jax.lax.scan(layer, 0.0, (frozen, theta)), has_aux=True
    )(theta)

  (value, y), got = step(theta, node.frozen)
  (want_value, _), want = step(theta, plain)
  assert float(value) == pytest.approx(float(want_value), rel=1e-5)
  for leaf, g in want.items():
    limit = 1e-5 * float(jnp.abs(g).max())
    np.testing.assert_allclose(got[leaf], g, atol=limit, err_msg=leaf)
  for i in range(2):
    parts = jax.tree.map(lambda x, i=i: x[i], (node.frozen, theta))
    merged = x @ adapter.merge(*parts)
    limit = 1e-5 * float(jnp.abs(merged).max())
    np.testing.assert_allclose(y[i], merged, atol=limit)


def test_a_model_starts_as_its_base(quantized):
  x = np.arange(20)[None]
  params = jaxpeft.adapt(quantized.params, {SOME: ADAPTERS["svft-banded"]}, KEY)
  np.testing.assert_array_equal(quantized.replace(params=params)(x), quantized(x))
  abstract = jax.eval_shape(
    lambda p: jaxpeft.adapt(p, {SOME: ADAPTERS["svft-banded"]}, KEY), quantized.params
  )
  chex.assert_trees_all_equal_shapes_and_dtypes(params, abstract)


def test_files_are_as_small_as_theta_and_know_another_machines_factors(
  quantized, tmp_path, monkeypatch
):
  params = adapt(quantized, ADAPTERS["svft-banded"])
  jaxpeft.save_adapter(params, tmp_path / "a", key=KEY)
  chex.assert_trees_all_equal(
    jaxpeft.load_adapter(quantized.params, tmp_path / "a"), params
  )
  size = (tmp_path / "a" / "adapter.safetensors").stat().st_size
  assert size < jaxpeft.count(params).bytes + 2000

  def other(change):
    exact = svd.svd

    def changed(w):
      u, s, vt = exact(w)
      return *change(u, s), s, vt

    monkeypatch.setattr(svd, "svd", changed)
    try:
      return jaxpeft.load_adapter(quantized.params, tmp_path / "a")
    finally:
      monkeypatch.undo()

  noise = lambda u, s: [u + 1e-5 * jax.random.normal(KEY, u.shape)]  # noqa: E731
  near = tree.flatten(other(noise))
  mine = tree.flatten(params)
  codes = [p for p in mine if p.endswith("u/codes")]
  assert any((near[p] != mine[p]).any() for p in codes), "or the noise is too little"
  for i in (0, 40, 127):
    with pytest.raises(InputError, match="other singular vectors"):
      other(lambda u, s, i=i: [u.at[:, i].mul(-1)])


def test_several_share_factors_in_4_bits_and_loras_are_exported(quantized, tmp_path):
  x = np.arange(20)[None]
  params = adapt(quantized, ADAPTERS["loraxs"])
  want = quantized.replace(params=params)(x)
  both = jaxpeft.attach(jaxpeft.attach(quantized.params, "a", params), "b", params)
  rows = quantized.replace(params=jaxpeft.select(both, ["b", None]))(np.tile(x, (2, 1)))
  np.testing.assert_allclose(rows[:1], want, atol=1e-4)
  np.testing.assert_allclose(rows[1:], quantized(x), atol=1e-4)
  assert max(jaxpeft.save_adapter(params, tmp_path, "peft").values()) == 0
  again = jaxpeft.load_adapter(quantized.params, tmp_path)
  np.testing.assert_allclose(quantized.replace(params=again)(x), want, atol=1e-4)


def test_factors_lie_on_a_mesh_as_the_weight_does(quantized):
  params = jax.eval_shape(
    lambda p: jaxpeft.adapt(p, {SOME: ADAPTERS["svf"]}, KEY), quantized.params
  )
  placed = sharding.shardings(params, make_mesh((2, 2, 2)))["layers_0"]
  q, down = (n.frozen for n in (placed["attn"]["q"], placed["mlp"]["down"]))
  assert q["w"].codes.spec == P(None, "tensor", "fsdp")  # [L, out, in / 2]
  assert q["u"].codes.spec == P(None, None, "fsdp")  # [L, k, in / 2]
  assert q["vt"].codes.spec == P(None, "tensor")  # [L, out, k / 2], small
  assert down["u"].codes.spec == P(None, None, ("tensor", "fsdp"))
  assert down["vt"].codes.spec == P(None, "fsdp")


def test_a_compiled_step_holds_the_factors_of_all_layers_in_4_bits():
  def plan(quantize):
    c = config.base()
    c.model.source, c.model.quantize, c.model.remat = "init:tiny", "nf4", "layer"
    c.adapt.main = dict(name="SVFT", match="layers_.*/(attn|mlp)/.*", quantize=quantize)
    c.train.batch_size, c.data.max_tokens = 1, 16
    return memory.plan(c)

  # U and Vt of 4 layers, in each 4 of 128 x 128 and 3 of 128 x 384.
  numbers = 4 * (4 * 2 * 128 * 128 + 3 * (128 * 128 + 128 * 384))
  dense, small = plan(""), plan("nf4")
  bytes_ = small.quantized - dense.quantized
  assert bytes_ == pytest.approx(numbers * 4.127 / 8, rel=0.01)
  assert dense.base - small.base == pytest.approx(4 * numbers, rel=0.01)
  # Dequantized, one layer's factors are a quarter of that.
  assert small.temporaries - dense.temporaries < 4 * numbers / 2


def test_what_factors_in_4_bits_cannot_do_is_refused():
  for method in (jaxpeft.SVF, jaxpeft.SVFT):
    with pytest.raises(InputError, match="keep_base"):
      method(quantize="nf4", keep_base=False)
  for method in (jaxpeft.SVF, jaxpeft.SVFT, jaxpeft.LoRAXS):
    with pytest.raises(InputError, match=r"quantize.*int3.*nf4"):
      method(quantize="int3")
  for adapter, shape in (
    (jaxpeft.SVF(quantize="nf4"), (96, 192)),
    (jaxpeft.SVFT(quantize="nf4"), (128, 96)),
    (jaxpeft.SVFT(quantize="nf4", rank=32), (128, 128)),
    (jaxpeft.LoRAXS(quantize="nf4"), (128, 128)),
  ):
    with pytest.raises(InputError, match="multiples of 64"):
      adapter.check("layers_0/attn/q", shape)
