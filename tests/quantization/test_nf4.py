"""4-bit weights: bitsandbytes' bits, exact products, every adapter over them."""

import dataclasses
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpeft
from jaxpeft import adapters, config, tree
from jaxpeft import model as models
from jaxpeft.errors import InputError
from jaxpeft.linear import dense, is_node
from jaxpeft.quantization import nf4
from jaxpeft.training import step as training
from tests.support.methods import (
  ADAPTERS,
  LINEARS,
  ROUNDED,
  one_batch,
  perturbed,
  start,
  weight,
)

SHAPES = [(384, 256), (64, 100), (1024, 512), (192, 8)]


@pytest.fixture(scope="module")
def functional():
  return pytest.importorskip("bitsandbytes.functional")


def theirs(functional, w):
  """(packed bytes, state) of bitsandbytes for our w [in, out]."""
  torch = pytest.importorskip("torch")
  dtype = getattr(torch, str(w.dtype))
  t = torch.tensor(np.asarray(w.T, np.float32)).to(dtype)
  return functional.quantize_4bit(t, blocksize=64, quant_type="nf4",
                                  compress_statistics=True)  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_are_those_of_bitsandbytes(shape, dtype, functional):
  w = weight(shape).at[:, 3].set(0).astype(dtype)  # with blocks of zeros
  ours = nf4.quantize(w)
  packed, state = theirs(functional, w)
  codes = np.asarray(nf4.unpack(ours.codes)).reshape(-1)
  np.testing.assert_array_equal(codes[::2] << 4 | codes[1::2], packed.numpy().ravel())
  # Its CPU quantizer of scales rounds by a table of 65,536 bins, its GPU one, as ours,
  # to the nearest: now and then the neighboring code.
  levels = state.absmax.numpy().reshape(ours.absmax.shape)
  away = np.abs(levels.astype(int) - np.asarray(ours.absmax, int))
  assert away.max() <= 1
  assert away.mean() < 0.01
  np.testing.assert_allclose(ours.nested, state.state2.absmax.numpy(), rtol=3e-7)
  np.testing.assert_allclose(ours.offset, state.offset.numpy(), rtol=3e-7)
  same = dataclasses.replace(
    ours,
    absmax=jnp.asarray(levels),
    nested=jnp.asarray(state.state2.absmax.numpy()),
    offset=jnp.asarray(state.offset.numpy()),
  )
  want = functional.dequantize_4bit(packed, state).float().numpy().T
  np.testing.assert_array_equal(np.asarray(same.dense(), np.float32), want)
  assert same.dense().dtype == ours.dtype == dtype


def test_the_code_of_scales_is_theirs(functional):
  from jaxpeft.quantization.dynamic_code import DYNAMIC_MAP

  np.testing.assert_array_equal(DYNAMIC_MAP, functional.create_dynamic_map().numpy())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_and_their_gradient_are_those_of_the_dense_weight(shape):
  node = jax.vmap(nf4.quantize)(jnp.stack([weight(shape), weight(shape, 1)]))
  assert node.shape == (2, *shape)
  x = jax.random.normal(jax.random.key(2), (2, 3, 5, shape[0]))
  whole = node.dense()
  want, pull = jax.vjp(lambda x: jnp.einsum("lbti,lio->lbto", x, whole), x)
  for products in (
    jax.jit(jax.vmap(lambda n, x: n.matmul(x))),
    lambda n, x: jnp.stack([n_i.matmul(x_i) for n_i, x_i in zip(n, x, strict=True)]),
    lambda n, x: jax.lax.scan(lambda _, nx: (None, nx[0].matmul(nx[1])), None, (n, x))[
      1
    ],
  ):
    got, back = jax.vjp(lambda x, f=products: f(node, x), x)
    np.testing.assert_allclose(got, want, atol=1e-5)
    np.testing.assert_allclose(back(got)[0], pull(got)[0], atol=1e-4)
  error = np.linalg.norm(whole[0] - weight(shape)) / np.linalg.norm(weight(shape))
  assert 0.08 < error < 0.1, "4 bits cost about 9 % of a normal weight's norm"


def test_a_real_model_takes_4_127_bits_a_number():
  params = jaxpeft.shapes(jaxpeft.SHAPES["llama2-7b"])
  nodes = [
    x
    for x in jax.tree.leaves(jax.eval_shape(nf4.quantize_tree, params), is_leaf=is_node)
    if is_node(x)
  ]
  numbers = sum(x.size for x in nodes)
  assert numbers == 6_476_005_376
  held = sum(x.size * x.dtype.itemsize for n in nodes for x in jax.tree.leaves(n))
  assert 8 * held / numbers == pytest.approx(4.127, abs=1e-3)


@pytest.fixture(scope="module")
def quantized():
  return jaxpeft.load("embedded", dtype="float32", quantize="nf4")


def adapt(params, adapter, leaves):
  gradients = {path: weight(x.shape, seed=7) for path, x in leaves.items()}
  return jaxpeft.adapt(params, {LINEARS: adapter}, jax.random.key(0), gradients)


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_adapter_is_over_4_bits_what_it_is_over_the_dequantized(name):
  adapter, node = ADAPTERS[name], nf4.quantize(weight((128, 40)))
  if name in ROUNDED:
    with pytest.raises(InputError, match="4 bits would round"):
      start(adapter, node)
    return
  x = jax.random.normal(jax.random.key(2), (2, 5, 128))

  @jax.jit
  def step(theta, frozen):
    value = lambda t: jnp.square(adapter.apply(x, frozen, t)).mean()  # noqa: E731
    return jax.value_and_grad(value)(theta)

  (frozen, theta), (plain, _) = start(adapter, node), start(adapter, node.dense())
  assert name == "full" or is_node(frozen["w"]), "the base stays in 4 bits"
  theta = perturbed(theta)
  (value, got), (want_value, want) = step(theta, frozen), step(theta, plain)
  assert float(value) == pytest.approx(float(want_value), rel=1e-4)
  for leaf, g in want.items():
    limit = 1e-4 * float(jnp.abs(g).max())
    np.testing.assert_allclose(got[leaf], g, atol=limit, err_msg=leaf)
  merged = adapter.merge(frozen, theta)
  np.testing.assert_allclose(merged, adapter.merge(plain, theta), atol=1e-4)


@pytest.mark.parametrize(
  "name", ["lora", pytest.param("svft-banded", marks=pytest.mark.slow), "full"]
)
def test_a_model_trains_in_4_bits_as_over_the_dequantized_base(name, quantized):
  adapter, base = ADAPTERS[name], quantized.params
  plain = jax.tree.map(dense, base, is_leaf=is_node)
  leaves = tree.flatten(plain)
  batch, tx = one_batch(), optax.sgd(1.0)
  step = training.make_step(quantized.transformer, tx)
  moved = []
  for params in (base, plain):
    params = adapt(params, adapter, leaves)
    mask = tree.trainable_mask(params)
    theta, frozen = tree.partition(params, mask)
    theta = perturbed(theta, scale=0.02)
    state = training.init_state(theta, tx)
    state, metrics = step(state, frozen, batch)
    grads = jax.tree.map(lambda a, b: a - b, theta, state.trainable)
    moved.append((float(metrics["loss"]), tree.flatten(grads)))
  (loss, got), (want_loss, want) = moved
  assert loss == pytest.approx(want_loss, rel=1e-5)
  assert got.keys() == want.keys()
  for path, g in want.items():
    limit = 2e-4 * float(jnp.abs(g).max()) + 1e-6
    np.testing.assert_allclose(got[path], g, atol=limit, err_msg=path)
  params = adapt(base, adapter, leaves)
  x = np.arange(20)[None]
  tuned = quantized.replace(params=params)
  merged = quantized.replace(params=jaxpeft.merge(params))
  np.testing.assert_allclose(merged(x), tuned(x), atol=2e-4)
  chex.assert_trees_all_equal_shapes_and_dtypes(merged.params, plain)


@pytest.mark.parametrize("method", [jaxpeft.PiSSA, jaxpeft.MiLoRA, jaxpeft.OLoRA])
def test_what_is_left_of_a_weight_can_be_frozen_in_4_bits(method):
  u, v = (np.linalg.qr(weight((n, 64), n))[0] for n in (128, 96))
  w = jnp.asarray((u * np.arange(1, 65.0) ** -0.7) @ v.T, jnp.float32)

  def away(adapter):
    frozen, theta = adapter.init(jax.random.key(0), w)
    assert isinstance(frozen["w"], nf4.NF4)
    x = jax.random.normal(jax.random.key(1), (3, 128))
    want = x @ adapter.merge(frozen, theta)
    np.testing.assert_allclose(adapter.apply(x, frozen, theta), want, atol=1e-5)
    return float(jnp.linalg.norm(adapter.merge(frozen, theta) - w))

  plain = float(jnp.linalg.norm(nf4.quantize(w).dense() - w))
  ours = away(method(rank=8, alpha=4.0, quantize="nf4"))
  assert ours < plain * (0.75 if method is jaxpeft.PiSSA else 1.05)
  loftq = away(jaxpeft.LoftQ(rank=8, alpha=4.0))
  more = away(jaxpeft.LoftQ(rank=8, alpha=4.0, rounds=5))
  assert more < loftq < 0.9 * plain
  if method is jaxpeft.PiSSA:
    assert away(method(rank=8, alpha=4.0, quantize="nf4", rounds=5)) < ours
  with pytest.raises(InputError, match="needs quantize"):
    method(rounds=2)
  with pytest.raises(InputError, match="of 4 bits"):
    jaxpeft.LoftQ(quantize="")
  with pytest.raises(InputError, match="multiple of 64"):
    jaxpeft.LoftQ().check("layers_0/attn/q", (48, 64))


def test_quantized_starts_are_saved_and_loaded_and_exported(tmp_path):
  model = jaxpeft.load("embedded", dtype="float32")
  rules = {
    "layers_.*/attn/q": jaxpeft.PiSSA(rank=4, quantize="nf4", iterations=4),
    "layers_.*/mlp/up": jaxpeft.LoftQ(rank=4),
  }
  params = jaxpeft.adapt(model.params, rules, jax.random.key(0))
  theta, frozen = tree.partition(params, tree.trainable_mask(params))
  params = tree.combine(perturbed(theta, scale=0.02), frozen)
  jaxpeft.save_adapter(params, tmp_path / "own", key=jax.random.key(0))
  again = jaxpeft.load_adapter(model.params, tmp_path / "own")
  chex.assert_trees_all_equal(again, params)
  with pytest.raises(InputError, match="give a rank"):
    jaxpeft.save_adapter(params, tmp_path / "peft", "peft", base=model.params)
  with pytest.raises(InputError, match="does not keep the base"):
    jaxpeft.save_adapter(params, tmp_path / "peft", "peft", rank=8)
  errors = jaxpeft.save_adapter(
    params, tmp_path / "peft", "peft", base=model.params, rank=128
  )
  assert max(errors.values()) < 1e-3
  back = model.replace(params=jaxpeft.load_adapter(model.params, tmp_path / "peft"))
  x = np.arange(20)[None]
  np.testing.assert_allclose(back(x), model.replace(params=params)(x), atol=1e-2)


@pytest.mark.parametrize("adapter", [jaxpeft.LoRA(), jaxpeft.SVFT("random")])
def test_files_and_attaching_work_over_4_bits(adapter, quantized, tmp_path):
  params = jaxpeft.adapt(quantized.params, {LINEARS: adapter}, jax.random.key(0))
  mask = tree.trainable_mask(params)
  theta, frozen = tree.partition(params, mask)
  params = tree.combine(perturbed(theta, scale=0.02), frozen)
  x = np.arange(20)[None]
  want = quantized.replace(params=params)(x)
  jaxpeft.save_adapter(params, tmp_path / "own", key=jax.random.key(0))
  again = jaxpeft.load_adapter(quantized.params, tmp_path / "own")
  np.testing.assert_array_equal(quantized.replace(params=again)(x), want)
  both = jaxpeft.attach(jaxpeft.attach(quantized.params, "a", params), "b", again)
  np.testing.assert_allclose(
    quantized.replace(params=jaxpeft.select(both, "b"))(x), want, atol=1e-4
  )
  chex.assert_trees_all_equal(
    jaxpeft.detach(jaxpeft.detach(both, "a"), "b"), quantized.params
  )
  if isinstance(adapter, jaxpeft.LoRA):
    jaxpeft.save_adapter(params, tmp_path / "peft", "peft")
    again = jaxpeft.load_adapter(quantized.params, tmp_path / "peft")
    np.testing.assert_allclose(quantized.replace(params=again)(x), want, atol=1e-4)
  other = jax.tree.map(lambda x: x + 1, quantized.params)
  with pytest.raises(InputError, match="another base"):
    jaxpeft.load_adapter(other, tmp_path / "own")


def test_loading_quantizes_what_was_read(quantized, tmp_path):
  whole = jaxpeft.load("embedded", dtype="float32")
  chex.assert_trees_all_equal(nf4.quantize_tree(whole.params), quantized.params)
  assert adapters.count(quantized.params).total == adapters.count(whole.params).total
  jaxpeft.save_hf(quantized, tmp_path)
  again = jaxpeft.load(str(tmp_path), dtype="float32")
  x = np.arange(20)[None]
  np.testing.assert_allclose(again(x), quantized(x), atol=1e-4)
  assert models.load("init:tiny", quantize="nf4").params["layers_0"]["attn"]["q"].ndim


def test_what_4_bits_cannot_do_is_refused(quantized):
  with pytest.raises(InputError, match=r"must be a multiple of 64"):
    nf4.quantize_tree({"layers_0": {"attn": {"q": jnp.ones((2, 96, 8))}}})
  with pytest.raises(InputError, match=r"quantize.*nf4"):
    jaxpeft.load("embedded", quantize="int3")
  c = config.base()
  c.model.quantize, c.data.eval, c.data.limit = "nf4", "", 40
  c.adapt.main = dict(name="LoRAOne", match=LINEARS)
  from jaxpeft import experiment

  with pytest.raises(InputError, match="has no gradient"):
    experiment.make(c)


def test_checkpoints_of_transformers_open_here_and_ours_there(quantized, tmp_path):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  pytest.importorskip("bitsandbytes")
  whole = jaxpeft.load("embedded", dtype="float32")
  jaxpeft.save_hf(whole, tmp_path / "whole")
  options = transformers.BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32,
  )
  auto = transformers.AutoModelForCausalLM
  x = np.arange(20)[None]

  def logits(model):
    # In training: else bitsandbytes, on CPUs that can, computes in bfloat16.
    with torch.no_grad():
      return model.train()(torch.tensor(x)).logits.numpy()

  theirs = auto.from_pretrained(
    tmp_path / "whole", quantization_config=options, dtype=torch.float32
  )
  theirs.save_pretrained(tmp_path / "theirs")
  for file in (tmp_path / "whole").glob("tokenizer*"):
    shutil.copy(file, tmp_path / "theirs")
  ours = jaxpeft.load(str(tmp_path / "theirs"), dtype="float32", quantize="nf4")
  np.testing.assert_allclose(ours(x), logits(theirs), atol=1e-4)
  with pytest.raises(InputError, match=r"quantize='nf4'"):
    jaxpeft.load(str(tmp_path / "theirs"))
  jaxpeft.save_hf(quantized, tmp_path / "ours", quantize="nf4")
  again = jaxpeft.load(str(tmp_path / "ours"), dtype="float32", quantize="nf4")
  chex.assert_trees_all_equal(again.params, quantized.params)
  theirs = auto.from_pretrained(tmp_path / "ours")
  np.testing.assert_allclose(quantized(x), logits(theirs), atol=1e-4)
  config_ = json.loads((tmp_path / "ours" / "config.json").read_text())
  config_["quantization_config"]["bnb_4bit_quant_type"] = "fp4"
  (tmp_path / "ours" / "config.json").write_text(json.dumps(config_))
  with pytest.raises(InputError, match="fp4"):
    jaxpeft.load(str(tmp_path / "ours"), quantize="nf4")
