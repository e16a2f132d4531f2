"""Every adapter through one interface; a new method is one line in ADAPTERS."""

import dataclasses
import os
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpeft
from jaxpeft import tree
from jaxpeft.adapters import svd
from jaxpeft.checkpoints import fingerprint
from jaxpeft.linear import linear
from jaxpeft.objectives import supervised
from jaxpeft.training import step as training
from tests.support.methods import (
  ADAPTERS,
  LINEARS,
  METHODS,
  ROUNDED,
  START,
  adapt,
  one_batch,
  perturbed,
  start,
  weight,
)

SHAPES = [(24, 24), (24, 40), (100, 30)]

each = pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture(scope="module")
def model():
  return jaxpeft.load("embedded", dtype="float32")


@pytest.mark.parametrize("name", ADAPTERS)
@each_shape
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_init_gives_the_base_weight(name, shape, dtype):
  w = weight(shape).astype(dtype)
  merged = ADAPTERS[name].merge(*start(ADAPTERS[name], w))
  norm = jnp.linalg.norm(w.astype("float32"))
  away = float(jnp.linalg.norm(merged - w.astype("float32")) / norm)
  # Factors reproduce a float32 weight to rounding; a kept base is kept exactly.
  near = 2e-3 if dtype == "bfloat16" and name in ROUNDED else 2e-6
  assert away < START.get(name, near)
  assert name not in START or away > 1e-5, "the reference's start is not W"


@each
@each_shape
def test_apply_equals_x_times_merge(adapter, shape):
  frozen, theta = start(adapter, weight(shape))
  theta = perturbed(theta)
  x = jax.random.normal(jax.random.key(2), (2, 5, shape[0]))
  want = x @ adapter.merge(frozen, theta)
  np.testing.assert_allclose(
    adapter.apply(x, frozen, theta), want, atol=1e-5 * float(jnp.abs(want).max())
  )


@each
def test_apply_keeps_the_dtype_of_x(adapter):
  frozen, theta = start(adapter, weight((24, 40)).astype("bfloat16"))
  x = jnp.ones((3, 24), "bfloat16")
  assert adapter.apply(x, frozen, theta).dtype == jnp.bfloat16
  assert all(t.dtype == jnp.float32 for t in jax.tree.leaves(theta))


@each
def test_dims_name_every_axis_of_every_leaf(adapter):
  frozen, theta = start(adapter, weight((24, 40)))
  for name, leaf in (frozen | theta).items():
    assert len(adapter.dims[name]) == leaf.ndim, name
    for letter, size in zip(adapter.dims[name], leaf.shape, strict=True):
      assert size == dict(i=24, o=40).get(letter, size)


@each
def test_sharded_by_its_dims_it_gives_the_same(adapter):
  """Input axes over 2 and output axes over 4 devices; all else is replicated."""
  devices = np.array(jax.devices()).reshape(2, 4)
  mesh = jax.sharding.Mesh(devices, ("i", "o"))

  def place(name, leaf):
    spec = [axis if axis in "io" else None for axis in adapter.dims[name]]
    spec = jax.sharding.PartitionSpec(*spec)
    return jax.device_put(leaf, jax.sharding.NamedSharding(mesh, spec))

  @jax.jit
  def step(theta, frozen, x):
    def value(theta):
      return jnp.square(adapter.apply(x, frozen, theta)).mean()

    return jax.value_and_grad(value)(theta)

  frozen, theta = start(adapter, weight((24, 40)))
  theta = perturbed(theta)
  x = jax.random.normal(jax.random.key(2), (16, 24))
  spread = [{k: place(k, leaf) for k, leaf in part.items()} for part in (theta, frozen)]
  for name, leaf in {**spread[0], **spread[1]}.items():
    held = leaf.addressable_shards[0].data.size
    assert (
      held
      * (2 if "i" in adapter.dims[name] else 1)
      * (4 if "o" in adapter.dims[name] else 1)
      == leaf.size
    ), name
  want, got = step(theta, frozen, x), step(*spread, x)
  assert float(got[0]) == pytest.approx(float(want[0]), rel=1e-5)
  for name, leaf in got[1].items():
    limit = 1e-4 * float(jnp.abs(want[1][name]).max())
    np.testing.assert_allclose(leaf, want[1][name], atol=limit, err_msg=name)


@each
def test_stacked_init_equals_layer_by_layer_and_abstract(adapter, model):
  tree = {"layers_0": {"attn": {"q": jnp.stack([weight((24, 40), s) for s in (0, 1)])}}}
  rules, key = {".*": adapter}, jax.random.key(3)
  gradients = {"layers_0/attn/q": weight((2, 24, 40), 5)}

  def adapt(tree, gradients):
    return jaxpeft.adapt(tree, rules, key, gradients)

  concrete = adapt(tree, gradients)
  traced = jax.jit(adapt)(tree, gradients)
  abstract = jax.eval_shape(adapt, tree, gradients)
  chex.assert_trees_all_equal_shapes_and_dtypes(concrete, abstract)
  chex.assert_trees_all_close(concrete, traced, atol=1e-5)


@pytest.mark.parametrize(
  ("name", "groups"),
  [
    *((name, ()) for name in METHODS.values()),
    ("lora", (3, 1)),
    pytest.param("svf", (3, 1), marks=pytest.mark.slow),
  ],
)
def test_only_theta_moves_and_one_trace_serves_all_steps(name, groups):
  adapter = ADAPTERS[name]
  model = jaxpeft.load("embedded", dtype="float32", groups=groups)
  params = adapt(model.params, adapter)
  trainable, frozen = tree.partition(params, tree.trainable_mask(params))
  before = jax.tree.map(np.array, frozen)
  tx = optax.adam(1e-2)
  state = training.init_state(trainable, tx)
  for leaf in jax.tree.leaves(state.opt):
    assert leaf.size <= max(x.size for x in jax.tree.leaves(trainable))
  step = training.make_step(model.transformer, tx)
  batch = one_batch()
  losses = []
  for _ in range(4):
    state, metrics = step(state, frozen, batch)
    losses.append(float(metrics["loss"]))
  assert losses[-1] < losses[0]
  assert step._cache_size() == 1
  chex.assert_trees_all_equal(before, frozen)
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), trainable, state.trainable)
  assert all(jax.tree.leaves(moved)), moved


@pytest.mark.parametrize("name", METHODS.values())
def test_merged_model_gives_the_adapted_models_logits(name, model):
  params = adapt(model.params, ADAPTERS[name])
  trainable, frozen = tree.partition(params, tree.trainable_mask(params))
  params = tree.combine(perturbed(trainable, scale=0.02), frozen)
  x = np.arange(30).reshape(2, 15)
  merged = jaxpeft.merge(params)
  chex.assert_trees_all_equal_shapes_and_dtypes(merged, model.params)
  want, base = model.replace(params=params)(x), model(x)
  np.testing.assert_allclose(model.replace(params=merged)(x), want, atol=1e-4)
  assert np.abs(want - base).max() > 1e-2, "the adapter must do something here"


@each
def test_hyperparameters_compare_by_value(adapter):
  again = dataclasses.replace(adapter)
  assert again == adapter
  assert hash(again) == hash(adapter)


# ---- counts of the papers, on the real shapes ------------------------------------


ALL = LINEARS
QKVUD = "layers_.*/(attn/[qkv]|mlp/(up|down))"
UDOG = "layers_.*/(attn/o|mlp/.*)"
GU = "layers_.*/mlp/(gate|up)"


@pytest.mark.parametrize(
  ("shape", "match", "adapter", "want"),
  [
    ("gemma-2b", ALL, jaxpeft.SVFT(pattern="plain"), 193_536),
    ("gemma-2b", ALL, jaxpeft.SVFT(pattern="plain", gate=True), 193_662),
    ("gemma-2b", ALL, jaxpeft.SVF(), 193_536),
    ("gemma-2b", ALL, jaxpeft.SVFT("banded", off_diagonals=8), 3_281_040),
    ("gemma-2b", ALL, jaxpeft.SVFT("banded", off_diagonals=16), 6_352_416),
    ("gemma-2b", ALL, jaxpeft.SVFT("random", off_diagonals=8), 3_281_040),
    ("gemma-2b", ALL, jaxpeft.SVFT("topk", off_diagonals=16), 6_352_416),
    ("gemma-2b", ALL, jaxpeft.SVFT("banded", off_diagonals=64, rank=128), 1_556_352),
    ("gemma-2b", QKVUD, jaxpeft.LoRA(rank=32), 26_247_168),
    ("gemma-2b", QKVUD, jaxpeft.LoRA(rank=1), 820_224),
    ("gemma-2b", QKVUD, jaxpeft.LoRA(rank=16), 13_123_584),
    ("gemma-2b", QKVUD, jaxpeft.DoRA(rank=16), 13_501_440),
    ("gemma-2b", QKVUD, jaxpeft.DoRA(rank=1), 1_198_080),
    ("gemma-2b", GU, jaxpeft.VeRA(rank=1024), 626_688),
    ("gemma-2b", GU, jaxpeft.VeRA(rank=2048), 663_552),
    ("gemma-7b", ALL, jaxpeft.SVFT("random", off_diagonals=16), 19_816_384),
    ("gemma-7b", ALL, jaxpeft.SVFT("plain"), 602_112),
    ("gemma-7b", QKVUD, jaxpeft.SVFT("plain"), 430_080),
    ("gemma-7b", ALL, jaxpeft.SVFT("banded", off_diagonals=8), 10_221_792),
    ("gemma-7b", ALL, jaxpeft.LoRA(rank=64), 200_015_872),
    ("gemma-7b", QKVUD, jaxpeft.LoRA(rank=1), 2_150_400),
    ("gemma-7b", GU, jaxpeft.VeRA(rank=1024), 1_433_600),
    ("gemma-7b", ALL, jaxpeft.LoRAXS(rank=64), 802_816),
    ("gemma-7b", ALL, jaxpeft.LoRAXS(rank=32), 200_704),
    ("gemma-7b", ALL, jaxpeft.LoRAXS(rank=16), 50_176),
    ("llama3-8b", UDOG, jaxpeft.SVFT("random", off_diagonals=12), 13_087_232),
    ("llama3-8b", UDOG, jaxpeft.SVFT("plain"), 524_288),
    ("llama3-8b", QKVUD, jaxpeft.SVFT("plain"), 458_752),
    ("llama3-8b", "layers_.*/attn/[qv]", jaxpeft.LoRA(rank=16), 6_815_744),
    ("llama3-8b", "layers_.*/attn/[qv]", jaxpeft.SVF(), 163_840),
    ("llama3-8b", "layers_.*/attn/[qkvo]", jaxpeft.SVF(), 327_680),
    ("llama3-8b", ALL, jaxpeft.SVF(), 720_896),
    ("mistral-7b", ALL, jaxpeft.LoRA(rank=64), 167_772_160),
    ("mistral-7b", ALL, jaxpeft.LoRAXS(rank=64), 917_504),
    ("mistral-7b", ALL, jaxpeft.LoRAXS(rank=32), 229_376),
    ("mistral-7b", ALL, jaxpeft.LoRAXS(rank=16), 57_344),
    ("llama2-7b", ALL, jaxpeft.PiSSA(rank=128), 319_815_680),
    ("llama2-7b", ALL, jaxpeft.LoRA(rank=256), 639_631_360),
    ("llama2-7b", QKVUD, jaxpeft.MiLoRA(rank=64), 112_197_632),
    ("llama2-7b", QKVUD, jaxpeft.NoRA(rank=32), 56_098_816),
    ("llama3.2-3b", ALL, jaxpeft.SVFT("plain"), 487_424),
    ("llama3.2-3b", ALL, jaxpeft.LoRAXS(rank=248), 12_054_784),
  ],
  ids=str,
)
def test_trainable_parameters_equal_the_papers(shape, match, adapter, want):
  """By the papers' formulas on the real shapes; misprints as corrected."""
  params = jaxpeft.shapes(jaxpeft.SHAPES[shape])
  adapted = jax.eval_shape(
    lambda p: jaxpeft.adapt(p, {match: adapter}, jax.random.key(0)), params
  )
  assert jaxpeft.count(adapted).trainable == want


@pytest.mark.parametrize(("d", "want"), [(0, 147_456), (2, 736_524)])
def test_truncated_svft_counts_as_in_the_paper(d, want):
  """Rank 1536 there means at most: keys and values of Gemma-2B have 256 directions."""
  params = jaxpeft.shapes(jaxpeft.SHAPES["gemma-2b"])
  rules = {
    "layers_.*/attn/[kv]": jaxpeft.SVFT(off_diagonals=d),
    "layers_.*/(attn/[qo]|mlp/.*)": jaxpeft.SVFT(off_diagonals=d, rank=1536),
  }
  adapted = jax.eval_shape(lambda p: jaxpeft.adapt(p, rules, jax.random.key(0)), params)
  assert jaxpeft.count(adapted).trainable == want


@pytest.mark.parametrize(
  ("shape", "billions"),
  [
    ("gemma-2b", 2.506),
    ("gemma-7b", 8.538),
    ("mistral-7b", 7.242),
    ("llama2-7b", 6.738),
    ("llama2-13b", 13.016),
    ("llama2-70b", 68.977),
    ("llama3-8b", 8.030),
    ("llama3.2-1b", 1.236),
    ("llama3.2-3b", 3.213),
    ("qwen2.5-0.5b", 0.494),
    ("qwen2.5-7b", 7.616),
    ("qwen3-0.6b", 0.596),
  ],
)
def test_named_shapes_have_the_published_sizes(shape, billions):
  params = jaxpeft.shapes(jaxpeft.SHAPES[shape])
  assert jaxpeft.count(params).total / 1e9 == pytest.approx(billions, abs=6e-4)


# ---- LoRA and SVFT: what their papers and codes say ------------------------------


def test_lora_scale_is_alpha_over_rank_or_over_its_root():
  assert jaxpeft.LoRA(rank=16, alpha=32.0).scale == 2.0
  assert jaxpeft.LoRA(rank=16, alpha=32.0, rslora=True).scale == 8.0


def test_lora_equals_peft():
  peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
  layer = torch.nn.Sequential(torch.nn.Linear(24, 40, bias=False))
  config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["0"])
  theirs = peft.get_peft_model(layer, config).base_model.model[0]
  a, b = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
  torch.nn.init.normal_(b)
  adapter = jaxpeft.LoRA(rank=4, alpha=6.0)
  w = jnp.asarray(theirs.base_layer.weight.detach().numpy().T)
  theta = dict(a=jnp.asarray(a.detach().numpy().T), b=jnp.asarray(b.detach().numpy().T))
  x = np.random.default_rng(0).normal(size=(3, 24)).astype(np.float32)
  want = theirs(torch.tensor(x)).detach().numpy()
  np.testing.assert_allclose(adapter.apply(x, dict(w=w), theta), want, atol=1e-5)
  own = adapter.init(jax.random.key(0), w)[1]["a"]
  assert float(own.std()) == pytest.approx(1 / np.sqrt(3 * 24), rel=0.2)
  assert float(np.abs(own).max()) <= 1 / np.sqrt(24)


@pytest.mark.parametrize("shape", [(64, 64), (48, 96)])
@pytest.mark.parametrize("off_diagonals", [0, 2, 8])
@pytest.mark.parametrize("gate", [False, True])
def test_svft_reference_start_is_as_far_from_w_as_the_published_code(
  shape, off_diagonals, gate
):
  adapter = jaxpeft.SVFT(
    "banded", off_diagonals=off_diagonals, start="reference", gate=gate
  )
  w = weight(shape)
  # k entries of N(0, 2/k) times sigmoid(0): the norm is sqrt(1/2) up to its spread.
  norms = [
    float(jnp.linalg.norm(adapter.merge(*adapter.init(jax.random.key(s), w)) - w))
    for s in range(20)
  ]
  assert np.mean(norms) == pytest.approx(np.sqrt(0.5), rel=0.05)


@pytest.mark.parametrize(("n", "d"), [(7, 0), (7, 2), (16, 5)])
def test_banded_entries_are_in_the_published_codes_order(n, d):
  # Row-major over the band, as a coalesced sparse tensor of torch lists them. That
  # code's matrix multiplies (out x in), so its row is our column.
  want = [(row, col) for row in range(n) for col in range(n) if abs(row - col) <= d]
  rows, cols = jaxpeft.SVFT("banded", off_diagonals=d).coordinates(n)
  assert list(zip(cols.tolist(), rows.tolist(), strict=True)) == want
  assert len(want) == jaxpeft.SVFT("banded", off_diagonals=d).entries(n)


@pytest.mark.parametrize("n", [1, 63, 64, 65, 130])
@pytest.mark.parametrize("d", [1, 8])
def test_banded_product_equals_the_dense_one(n, d):
  if d >= n:
    pytest.skip("the band is wider than the matrix")
  adapter = jaxpeft.SVFT("banded", off_diagonals=d)
  rows, cols = adapter.coordinates(n)
  m = np.random.default_rng(0).normal(size=rows.size).astype(np.float32)
  dense = np.zeros((n, n), np.float32)
  dense[rows, cols] = m
  h = np.random.default_rng(1).normal(size=(3, n)).astype(np.float32)
  from jaxpeft.adapters import svft

  got = svft.banded_product(jnp.asarray(h), jnp.asarray(m), rows, cols, d)
  np.testing.assert_allclose(got, h @ dense, atol=1e-5)


def test_random_pattern_draws_distinct_positions_unless_asked_not_to():
  w = weight((64, 64))
  for replacement in (False, True):
    adapter = jaxpeft.SVFT("random", off_diagonals=8, replacement=replacement)
    frozen, _ = adapter.init(jax.random.key(0), w)
    cells = set(zip(frozen["rows"].tolist(), frozen["cols"].tolist(), strict=True))
    assert (len(cells) == adapter.entries(64)) == (not replacement)


def test_repeated_positions_add():
  adapter = jaxpeft.SVFT("random", off_diagonals=1)
  frozen, _ = adapter.init(jax.random.key(0), jnp.eye(8))
  frozen |= dict(rows=jnp.zeros(22, int), cols=jnp.full(22, 3))
  moved = adapter.merge(frozen, dict(m=jnp.ones(22))) - jnp.eye(8)
  assert float(jnp.abs(moved).sum()) == pytest.approx(22, rel=1e-4)


def test_topk_takes_the_pairs_with_the_largest_products():
  w = weight((20, 20))
  u, _, vt = svd.svd(w)
  adapter = jaxpeft.SVFT("topk", off_diagonals=1)
  frozen, _ = adapter.init(jax.random.key(0), w)
  scores = np.abs(np.asarray(u).T @ np.asarray(vt).T)
  least = np.sort(scores.reshape(-1))[-adapter.entries(20)]
  assert (scores[frozen["rows"], frozen["cols"]] >= least).all()


def flip(frozen, i):
  return frozen | dict(u=frozen["u"].at[:, i].mul(-1), vt=frozen["vt"].at[i].mul(-1))


@pytest.mark.parametrize(("pattern", "same"), [("plain", True), ("banded", False)])
def test_sign_flips_matter_off_the_diagonal_only(pattern, same):
  adapter = jaxpeft.SVFT(pattern)
  frozen, theta = adapter.init(jax.random.key(0), weight((24, 30)))
  theta = perturbed(theta)
  a, b = adapter.merge(frozen, theta), adapter.merge(flip(frozen, 3), theta)
  assert np.allclose(a, b, atol=1e-5) == same


def test_sign_flips_leave_svf_alone_and_change_lora_xs():
  w = weight((24, 30))
  for adapter, same in ((jaxpeft.SVF(), True), (jaxpeft.LoRAXS(rank=8), False)):
    frozen, theta = adapter.init(jax.random.key(0), w)
    theta = perturbed(theta)
    a, b = adapter.merge(frozen, theta), adapter.merge(flip(frozen, 3), theta)
    assert np.allclose(a, b, atol=1e-5) == same


def test_svf_adapters_of_one_base_add_exactly():
  w, adapter = weight((24, 40)), jaxpeft.SVF()
  frozen, ones = adapter.init(jax.random.key(0), w)
  z1, z2 = (perturbed(ones, seed)["z"] for seed in (1, 2))
  both = adapter.merge(frozen, dict(z=z1 + z2 - 1))
  one, two = (adapter.merge(frozen, dict(z=z)) for z in (z1, z2))
  np.testing.assert_allclose(both - w, (one - w) + (two - w), atol=2e-6)
  assert both.shape == w.shape
  assert (z1 + z2 - 1).size == z1.size


def test_svf_of_the_published_code_keeps_the_sum_of_singular_values():
  w, adapter = weight((24, 40)), jaxpeft.SVF(reference=True)
  frozen, theta = adapter.init(jax.random.key(0), w)
  s = np.linalg.svd(w, compute_uv=False)
  assert float(jnp.linalg.norm(adapter.merge(frozen, theta) - w)) < 0.01 * s.sum()
  merged = adapter.merge(frozen, perturbed(theta))
  moved = np.linalg.svd(merged, compute_uv=False)
  assert moved.sum() == pytest.approx(s.sum(), rel=1e-5)
  assert np.abs(np.sort(moved) - np.sort(s)).max() > 0.05


@pytest.mark.parametrize("alpha", [4.0, 10.0])
def test_pissa_and_milora_hold_the_ends_of_the_spectrum(alpha):
  w = weight((24, 40))
  s = np.linalg.svd(w, compute_uv=False)
  for method, part in ((jaxpeft.PiSSA, s[:4]), (jaxpeft.MiLoRA, s[-4:])):
    adapter = method(rank=4, alpha=alpha)
    _, theta = adapter.init(jax.random.key(0), w)
    product = adapter.scale * theta["a"] @ theta["b"]
    got = np.linalg.svd(product, compute_uv=False)[:4]
    np.testing.assert_allclose(got, part, atol=1e-5)


def test_nora_starts_in_the_weights_column_space_and_olora_orthonormal():
  w = weight((40, 24)) @ jnp.diag(jnp.r_[jnp.ones(5), jnp.zeros(19)])  # rank 5
  theta = jaxpeft.NoRA(rank=4, alpha=8.0, sigma=0.1).init(jax.random.key(0), w)[1]
  u = np.linalg.svd(w)[0][:, :5]
  np.testing.assert_allclose(u @ (u.T @ theta["a"]), theta["a"], atol=1e-5)
  # sigma / c times a sum of 24 products with deviation ||row of w||.
  want = 0.1 / 2 * np.sqrt(np.square(w).sum() / 40)
  assert float(theta["a"].std()) == pytest.approx(want, rel=0.3)
  assert not theta["b"].any()
  b = jaxpeft.OLoRA(rank=4).init(jax.random.key(0), weight((40, 24)))[1]["b"]
  np.testing.assert_allclose(b @ b.T, np.eye(4), atol=1e-5)


def test_starts_from_gradients_follow_their_formulas():
  w, g = weight((24, 40)), weight((24, 40), 3)
  u, s, vt = np.linalg.svd(g, full_matrices=False)
  frozen, theta = jaxpeft.LoRAGA(rank=4, gamma=16.0).init(jax.random.key(0), w, g)
  size = 40**0.25 / 4
  spread = np.abs(theta["a"].T @ u[:, :8]) / size  # rows: ours, columns: theirs
  np.testing.assert_allclose(np.square(spread[:, :4]).sum(1), 1, atol=2e-2)
  spread = np.abs(theta["b"] @ vt[:8].T) / size
  np.testing.assert_allclose(np.square(spread[:, 4:]).sum(1), 1, atol=0.1)
  adapter = jaxpeft.LoRAOne(rank=4, alpha=8.0, gamma=128.0)
  frozen, theta = adapter.init(jax.random.key(0), w, g)
  want = -adapter.scale * (u[:, :4] * s[:4] / s[0]) @ vt[:4] / 128
  np.testing.assert_allclose(adapter.merge(frozen, theta) - w, want, atol=1e-4)


def test_gradients_are_of_the_mean_loss_and_asked_for(model):
  batches = [jax.tree.map(lambda x: x[0], one_batch(rows, 20)) for rows in (1, 3)]
  path = "layers_0/mlp/up"
  got = jaxpeft.gradients(model.transformer, model.params, [path], batches)
  assert got.keys() == {path}

  def mean(up):
    layer = model.params["layers_0"]
    layer = layer | {"mlp": layer["mlp"] | {"up": up}}
    params = model.params | {"layers_0": layer}
    sums = [supervised.loss(model.transformer, params, batch) for batch in batches]
    return sum(s.total for s in sums) / sum(s.weight for s in sums)

  want = jax.grad(mean)(model.params["layers_0"]["mlp"]["up"])
  np.testing.assert_allclose(got[path], want, atol=1e-5 * float(jnp.abs(want).max()))
  with pytest.raises(ValueError, match="starts from the loss's gradient"):
    jaxpeft.adapt(model.params, {path: jaxpeft.LoRAOne()}, jax.random.key(0))
  with pytest.raises(ValueError, match="twice the rank"):
    jaxpeft.adapt(model.params, {path: jaxpeft.LoRAGA(rank=100)}, jax.random.key(0), {})


def test_dora_norm_is_constant_to_the_gradient_and_needs_no_dense_weight():
  adapter = jaxpeft.DoRA(rank=4, alpha=8.0)
  frozen, theta = adapter.init(jax.random.key(0), weight((24, 40)))
  theta = perturbed(theta)
  x = jax.random.normal(jax.random.key(2), (5, 24))
  dense = frozen["w"] + adapter.scale * theta["a"] @ theta["b"]
  norm = np.linalg.norm(dense, axis=0)

  def held(theta):
    y = x @ (frozen["w"] + adapter.scale * theta["a"] @ theta["b"])
    return jnp.sum(jnp.sin(y * theta["m"] / norm))

  def own(theta):
    return jnp.sum(jnp.sin(adapter.apply(x, frozen, theta)))

  chex.assert_trees_all_close(jax.grad(own)(theta), jax.grad(held)(theta), atol=1e-4)
  text = jax.jit(adapter.apply).lower(x[:1], frozen, theta).as_text()
  assert "tensor<24x40xf32>" in text  # the weight itself, as an argument
  assert not re.search(r"(add|multiply).*tensor<24x40xf32>", text)


def test_vera_weights_share_corners_of_one_pair():
  adapter = jaxpeft.VeRA(rank=8)
  small, large = (
    adapter.init(jax.random.key(i), weight(shape))[0]
    for i, shape in enumerate([(24, 40), (48, 80)])
  )
  # Bounds follow each weight's own width.
  ratio = np.sqrt(48 / 24)
  np.testing.assert_allclose(small["a"], ratio * large["a"][:24], rtol=1e-5)
  np.testing.assert_allclose(small["b"], large["b"][:, :40], rtol=1e-5)


@pytest.mark.parametrize("shape", [(60, 90), (90, 60)])
@pytest.mark.parametrize("iterations", [0, 2, 8])
def test_randomized_svd_is_at_least_as_near_as_torchs(shape, iterations):
  torch = pytest.importorskip("torch")
  rng = np.random.default_rng(0)
  u, v = (np.linalg.qr(rng.normal(size=(n, 60)))[0] for n in shape)
  spectrum = np.arange(1, 61.0) ** -0.7
  w = ((u * spectrum) @ v.T).astype(np.float32)
  best = np.sqrt(np.square(spectrum[8:]).sum())

  def lost(u, s, vt):
    return np.linalg.norm(w - (np.asarray(u) * np.asarray(s)) @ np.asarray(vt)) / best

  def theirs(seed):
    torch.manual_seed(seed)
    u, s, v = torch.svd_lowrank(torch.tensor(w), q=8, niter=iterations)
    return lost(u, s, v.T)

  ours = [lost(*svd.randomized(jax.random.key(i), w, 8, iterations)) for i in range(20)]
  want = np.mean([theirs(i) for i in range(20)])
  assert np.mean(ours) < want * (1.002 if iterations else 1.05)
  if iterations == 8:  # what the shift gains
    assert np.mean(ours) - 1 < 0.7 * (want - 1)
  assert min(ours) >= 1 - 1e-5
  exact = svd.randomized(jax.random.key(0), w, 8, 30, 8)
  np.testing.assert_allclose(exact[1], spectrum[:8], rtol=1e-4)


@pytest.mark.parametrize("spectrum", [[1.0] * 3, [], 10.0 ** -np.arange(20)])
def test_randomized_svd_of_a_singular_weight(spectrum):
  u, v = (np.linalg.qr(weight((n, 20)))[0] for n in (60, 90))
  spectrum = np.pad(spectrum, (0, 20 - len(spectrum)))
  w = jnp.asarray((u * spectrum) @ v.T, jnp.float32)
  u, s, vt = svd.randomized(jax.random.key(0), w, 12, 4)
  np.testing.assert_allclose((u * s) @ vt, w, atol=3e-6)
  for basis in (u.T, vt):
    np.testing.assert_allclose(basis @ basis.T, np.eye(12), atol=1e-4)


def test_canonical_signs_undo_a_flip_and_the_fingerprint_sees_one():
  u, s, vt = svd.exact(weight((24, 30)))
  flipped = svd.canonical_signs(u.at[:, 3].mul(-1), s, vt.at[3].mul(-1))
  np.testing.assert_array_equal(flipped[0], u)
  np.testing.assert_array_equal(flipped[2], vt)
  mark = fingerprint.fingerprint(dict(u=u, vt=vt))
  noise = 1e-6 * jax.random.normal(jax.random.key(0), u.shape)
  assert not fingerprint.differences(
    mark, fingerprint.fingerprint(dict(u=u + noise, vt=vt))
  )
  for i in range(24):
    changed = fingerprint.fingerprint(dict(u=u.at[:, i].mul(-1), vt=vt.at[i].mul(-1)))
    assert "u" in fingerprint.differences(mark, changed), i


def test_svd_cache_is_used_and_a_damaged_entry_is_made_again(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXPEFT_CACHE", str(tmp_path))
  w = weight((16, 12))
  first = svd.svd(w)
  (entry,) = (tmp_path / "svd").iterdir()
  monkeypatch.setattr(svd, "exact", lambda w: pytest.fail("not read from the cache"))
  chex.assert_trees_all_equal(first, svd.svd(w))
  monkeypatch.undo()
  monkeypatch.setenv("JAXPEFT_CACHE", str(tmp_path))
  whole = entry.read_bytes()
  flipped = whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:]
  for damaged in (b"broken", whole[: len(whole) // 2], flipped):
    entry.write_bytes(damaged)
    chex.assert_trees_all_equal(first, svd.svd(w))
    assert entry.read_bytes() == whole


def test_the_svd_cache_is_bounded_and_can_be_turned_off(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXPEFT_CACHE", str(tmp_path))
  monkeypatch.setenv("JAXPEFT_SVD_CACHE_GB", "0")
  first = svd.svd(weight((24, 20)))
  assert not (tmp_path / "svd").exists()
  monkeypatch.setenv("JAXPEFT_SVD_CACHE_GB", "1.2e-5")  # two entries of 5 kB
  (tmp_path / "svd").mkdir()
  for i in range(3):  # of earlier runs
    (tmp_path / "svd" / str(i)).write_bytes(bytes(4000))
    os.utime(tmp_path / "svd" / str(i), (i, i))
  found = []
  for i in range(6):
    svd.svd(weight((24, 20), i))
    names = {path.name for path in (tmp_path / "svd").iterdir()}
    assert sum(path.stat().st_size for path in (tmp_path / "svd").iterdir()) <= 12_000
    found.append(names)
  assert not names & {"0", "1", "2"}
  assert len(names) == 2
  assert found[2] == names  # a run's own entries are not dropped for others of its own
  chex.assert_trees_all_equal(first, svd.svd(weight((24, 20))))


def test_factors_are_those_of_float64_up_to_rounding():
  w = np.asarray(weight((96, 64)), np.float64) * np.logspace(0, -4, 64)
  u, s, vt = (np.asarray(x, np.float64) for x in svd.exact(jnp.asarray(w, jnp.float32)))
  assert np.abs(u.T @ u - np.eye(64)).max() < 1e-5
  assert np.abs(vt @ vt.T - np.eye(64)).max() < 1e-5
  assert np.abs((u * s) @ vt - w).max() < 1e-6 * s[0]
  np.testing.assert_allclose(s, np.linalg.svd(w)[1], atol=1e-6 * s[0])


# ---- rules, partitions -----------------------------------------------------------


@pytest.mark.parametrize(
  ("rules", "message"),
  [
    ({"layers_0/atn/.*": jaxpeft.LoRA()}, "matches none of"),
    ({"layers_0/(attn": jaxpeft.LoRA()}, "is not a valid regex"),
    ({LINEARS: jaxpeft.LoRA(), ".*/q": jaxpeft.Full()}, "two adapter rules match"),
    ({".*/norm/.*": jaxpeft.LoRA()}, "takes matrices"),
    ({LINEARS: jaxpeft.LoRA(rank=129)}, "rank 129 is not between"),
    ({LINEARS: jaxpeft.SVFT(rank=129)}, "rank 129 is not between"),
    ({LINEARS: jaxpeft.SVFT(off_diagonals=128)}, "off_diagonals 128"),
  ],
)
def test_rules_that_do_not_fit_are_refused(model, rules, message):
  with pytest.raises(jaxpeft.InputError, match=re.escape(message)):
    jaxpeft.adapt(model.params, rules, jax.random.key(0))


@pytest.mark.parametrize("method", [jaxpeft.LoRA, jaxpeft.PiSSA, jaxpeft.DoRA])
def test_a_scale_of_zero_is_refused(method):
  with pytest.raises(jaxpeft.InputError, match=r"alpha 0\.0 is not above 0"):
    method(alpha=0.0)


def test_adapting_twice_is_refused(model):
  params = jaxpeft.adapt(model.params, {LINEARS: jaxpeft.LoRA()}, jax.random.key(0))
  with pytest.raises(jaxpeft.InputError, match="adapted already"):
    jaxpeft.adapt(params, {LINEARS: jaxpeft.LoRA()}, jax.random.key(0))


def test_full_takes_norms_and_embeddings_and_methods_mix(model):
  rules = {
    "layers_.*/norm/.*|final_norm|embed": jaxpeft.Full(),
    "layers_.*/attn/.*": jaxpeft.SVFT("plain"),
    "layers_.*/mlp/.*": jaxpeft.LoRA(rank=2),
  }
  params = jaxpeft.adapt(model.params, rules, jax.random.key(0))
  x = np.arange(20).reshape(2, 10)
  np.testing.assert_allclose(model.replace(params=params)(x), model(x), atol=1e-4)
  trainable, frozen = jaxpeft.partition(params, jaxpeft.trainable_mask(params))
  net = model.transformer

  def loss(t):
    return jnp.mean(net.apply({"params": jaxpeft.combine(t, frozen)}, x) ** 2)

  grads = tree.flatten(jax.jit(jax.grad(loss))(trainable))
  zero = [p for p, g in grads.items() if not np.abs(g).any() and not p.endswith("/a")]
  assert not zero, "B is zero at the start, so A alone has no gradient yet"
  assert {"embed/theta/w", "layers_0/mlp/up/theta/b"} <= grads.keys()


def test_partition_and_combine_are_inverse(model):
  params = jaxpeft.adapt(model.params, {LINEARS: jaxpeft.SVFT()}, jax.random.key(0))
  mask = jaxpeft.trainable_mask(params)
  trainable, frozen = jaxpeft.partition(params, mask)
  assert jaxpeft.combine(trainable, frozen) is not params
  chex.assert_trees_all_equal(jaxpeft.combine(trainable, frozen), params)
  assert len(jax.tree.leaves(trainable)) == sum(jax.tree.leaves(mask))
  assert len(jax.tree.leaves(optax.adam(1.0).init(trainable))) == 1 + 2 * sum(
    jax.tree.leaves(mask)
  )


def test_step_costs_what_the_split_form_costs(model):
  """No gradient of a frozen weight is computed: compiled FLOPs tell."""
  rules = {LINEARS: jaxpeft.LoRA(rank=4)}
  net, x = model.transformer.clone(groups=(1,) * 4), np.ones((2, 64), np.int32)
  params4 = jaxpeft.load("embedded", dtype="float32", groups=(1,) * 4).params
  params = jaxpeft.adapt(params4, rules, jax.random.key(0))
  trainable, frozen = jaxpeft.partition(params, jaxpeft.trainable_mask(params))

  def flops(f, *args):
    return jax.jit(f).lower(*args).compile().cost_analysis()["flops"]

  def value(p):
    return net.apply({"params": p}, x).astype(jnp.float32).sum()

  ours = flops(jax.grad(lambda t: value(jaxpeft.combine(t, frozen))), trainable)
  mask = jaxpeft.trainable_mask(params)
  dead = flops(lambda p: jaxpeft.partition(jax.grad(value)(p), mask)[0], params)
  whole = flops(jax.grad(value), params)
  assert ours <= dead
  assert ours < 0.85 * whole


@pytest.mark.parametrize("adapter", [jaxpeft.LoRA(rank=4), jaxpeft.SVFT()])
def test_remat_of_products_frees_memory_and_repeats_no_product(adapter, model):
  params = jaxpeft.adapt(model.params, {LINEARS: adapter}, jax.random.key(0))
  trainable, frozen = jaxpeft.partition(params, jaxpeft.trainable_mask(params))
  x = np.ones((4, 64), np.int32)

  def compiled(remat):
    net = model.transformer.clone(remat=remat)

    def value(t):
      return net.apply({"params": jaxpeft.combine(t, frozen)}, x).sum()

    return jax.jit(jax.grad(value)).lower(trainable).compile()

  bytes_, dots = {}, {}
  for remat in ("none", "products", "layer"):
    program = compiled(remat)
    bytes_[remat] = program.memory_analysis().temp_size_in_bytes
    dots[remat] = program.as_text().count(" dot(")
  assert bytes_["layer"] < bytes_["products"] < bytes_["none"]
  assert dots["none"] == dots["products"] < dots["layer"]


def test_a_weight_node_is_multiplied_by_its_own_rule():
  node = jaxpeft.Adapted(
    *jaxpeft.LoRA().init(jax.random.key(0), weight((24, 40))), jaxpeft.LoRA()
  )
  x = jnp.ones((2, 24))
  np.testing.assert_allclose(linear(x, node), x @ node.dense(), atol=1e-5)
