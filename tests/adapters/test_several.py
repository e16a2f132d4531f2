"""Several adapters on one base: attached by name, for rows of a batch, and blended."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft
from jaxpeft.adapters.combine import _drop
from jaxpeft.errors import InputError
from jaxpeft.generation import decode
from tests.support.methods import LINEARS

TOKENS = np.random.default_rng(0).integers(3, 400, (3, 12))
ATTACHABLE = {
  "lora": jaxpeft.LoRA(rank=4, alpha=8.0),
  "dora": jaxpeft.DoRA(rank=4, alpha=8.0),
  "nora": jaxpeft.NoRA(rank=4, alpha=8.0),
  "loraxs": jaxpeft.LoRAXS(rank=4, alpha=8.0),
  "svf": jaxpeft.SVF(keep_base=True),
  "svf-ref": jaxpeft.SVF(keep_base=True, reference=True),
  "svft": jaxpeft.SVFT("banded", off_diagonals=1, keep_base=True),
  "svft-gate": jaxpeft.SVFT("random", off_diagonals=1, keep_base=True, gate=True),
  "vera": jaxpeft.VeRA(rank=8),
  "ia3": jaxpeft.IA3(),
}


@pytest.fixture(scope="module")
def model():
  return jaxpeft.load("embedded", dtype="float32")


def tuned(model, adapter, seed, match=LINEARS, scale=0.05):
  """An adapter that was trained, as far as anybody can tell."""
  params = jaxpeft.adapt(model.params, {match: adapter}, jax.random.key(0))
  theta, frozen = jaxpeft.partition(params, jaxpeft.trainable_mask(params))
  rng = np.random.default_rng(seed)
  theta = jax.tree.map(lambda x: x + scale * rng.normal(size=x.shape), theta)
  theta = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), theta)
  return jaxpeft.combine(theta, frozen)


def logits(model, params, rows=TOKENS):
  return np.asarray(model.replace(params=params)(rows))


@pytest.mark.parametrize("name", ATTACHABLE)
def test_each_row_has_the_adapter_it_asks_for(name, model):
  one, two = (tuned(model, ATTACHABLE[name], seed) for seed in (1, 2))
  params = jaxpeft.attach(model.params, "one", one)
  params = jaxpeft.attach(params, "two", two)
  want = [logits(model, p) for p in (one, model.params, two)]
  rows = logits(model, jaxpeft.select(params, ["one", None, "two"]))
  for i, w in enumerate(want):
    np.testing.assert_allclose(rows[i], w[i], atol=2e-3)
  assert np.abs(want[0] - want[2]).max() > 0.1
  np.testing.assert_allclose(logits(model, params), want[2], atol=2e-3)
  for who, w in (("one", want[0]), (None, want[1])):
    np.testing.assert_allclose(logits(model, jaxpeft.select(params, who)), w, atol=2e-3)


def test_the_base_is_shared_and_comes_back(model):
  params = model.params
  for i in range(3):
    params = jaxpeft.attach(params, f"a{i}", tuned(model, jaxpeft.LoRA(), i))
  node = params["layers_0"]["attn"]["q"]
  assert node.frozen["w"] is model.params["layers_0"]["attn"]["q"]
  params = jaxpeft.detach(params, "a1")
  assert params["layers_0"]["attn"]["q"].names == ("a0", "a2")
  want = logits(model, tuned(model, jaxpeft.LoRA(), 2))
  got = logits(model, jaxpeft.select(params, "a2"))
  np.testing.assert_allclose(got, want, atol=1e-4)
  params = jaxpeft.detach(jaxpeft.detach(params, "a0"), "a2")
  same = jax.tree.map(lambda a, b: a is b, params, model.params)
  assert all(jax.tree.leaves(same))


def test_swapping_and_choosing_compile_nothing(model):
  params = jaxpeft.attach(model.params, "one", tuned(model, jaxpeft.LoRA(), 1))
  params = jaxpeft.attach(params, "two", tuned(model, jaxpeft.LoRA(), 2))
  params = jaxpeft.select(params, ["one", "two", None])
  f = jax.jit(lambda p: model.transformer.apply({"params": p}, TOKENS))
  first = f(params)
  params = jaxpeft.attach(params, "two", tuned(model, jaxpeft.LoRA(), 3))
  params = jaxpeft.select(params, ["two", "two", "one"])
  second = f(params)
  assert f._cache_size() == 1
  assert np.abs(first - second).max() > 0.1


def test_generation_with_an_adapter_for_each_prompt(model):
  one, two = (tuned(model, jaxpeft.LoRA(), seed, scale=0.02) for seed in (1, 2))
  params = jaxpeft.attach(model.params, "one", one)
  params = jaxpeft.attach(params, "two", two)
  prompts = ["Question: 12+13?\nAnswer:", "Question: 9-4?\nAnswer:", "Question: 7+7?"]
  names = ["one", None, "two"]
  options = dict(max_new_tokens=8, batch_size=2)
  got = model.replace(params=params).generate(prompts, adapters=names, **options)
  for i, p in enumerate((one, model.params, two)):
    want = model.replace(params=p).generate(prompts, **options)
    assert got[i] == want[i]
  with pytest.raises(InputError, match="2 adapters for 3 prompts"):
    model.replace(params=params).generate(prompts, adapters=names[:2])
  assert callable(decode.generate)


def test_what_cannot_be_attached_is_refused(model):
  params = jaxpeft.attach(model.params, "one", tuned(model, jaxpeft.LoRA(), 1))
  other = model.replace(params=jax.tree.map(lambda x: x + 0.1, model.params))
  for name, adapted, message in (
    ("two", tuned(model, jaxpeft.LoRA(rank=4), 1), "same method and options"),
    (
      "two",
      tuned(model, jaxpeft.LoRA(), 1, match="layers_.*/attn/q"),
      "does not adapt",
    ),
    ("two", tuned(other, jaxpeft.LoRA(), 1), "another base"),
    ("", tuned(model, jaxpeft.LoRA(), 1), "needs a name"),
    ("two", model.params, "does not adapt"),
  ):
    with pytest.raises(InputError, match=message):
      jaxpeft.attach(params, name, adapted)
  some = jaxpeft.attach(
    model.params, "one", tuned(model, jaxpeft.LoRA(), 1, match="layers_.*/attn/q")
  )
  with pytest.raises(InputError, match="which the attached adapters do not"):
    jaxpeft.attach(some, "two", tuned(model, jaxpeft.LoRA(), 1))
  for adapter in (jaxpeft.PiSSA(rank=4), jaxpeft.SVF(), jaxpeft.Full()):
    with pytest.raises(InputError, match="does not keep the base"):
      jaxpeft.attach(model.params, "one", tuned(model, adapter, 1))
  with pytest.raises(InputError, match="onne"):
    jaxpeft.select(params, "onne")
  with pytest.raises(InputError, match="detach"):
    jaxpeft.merge(params)
  with pytest.raises(InputError, match="no adapter is attached"):
    jaxpeft.detach(model.params, "one")


# ---- blends -----------------------------------------------------------------------


@pytest.mark.parametrize(
  ("adapter", "growth"),
  [
    (jaxpeft.SVF(), 1),
    (jaxpeft.SVF(keep_base=True), 1),
    (jaxpeft.SVFT("banded", off_diagonals=2), 1),
    (jaxpeft.SVFT("random", off_diagonals=2), 1),
    (jaxpeft.LoRAXS(rank=4, alpha=8.0), 1),
    (jaxpeft.LoRA(rank=4, alpha=8.0), 2),
    (jaxpeft.NoRA(rank=4, alpha=8.0), 2),
  ],
  ids=lambda x: type(x).__name__ if not isinstance(x, int) else str(x),
)
def test_sums_are_exact_and_svd_methods_keep_their_size(adapter, growth, model):
  one, two = (tuned(model, adapter, seed) for seed in (1, 2))
  both = jaxpeft.blend([one, two], weights=[1.0, -0.5])
  w, w1, w2, got = (
    np.asarray(p["layers_0"]["mlp"]["up"])
    for p in (model.params, *map(jaxpeft.merge, (one, two, both)))
  )
  np.testing.assert_allclose(got, w + (w1 - w) - 0.5 * (w2 - w), atol=2e-5)
  size = jaxpeft.count(one).trainable
  assert jaxpeft.count(both).trainable == growth * size
  np.testing.assert_allclose(
    logits(model, both), logits(model, jaxpeft.merge(both)), atol=1e-3
  )


def test_gates_and_the_published_svf_are_folded_in(model):
  gated = jaxpeft.SVFT("plain", gate=True)
  for adapter in (gated, jaxpeft.SVF(reference=True)):
    one, two = (tuned(model, adapter, seed) for seed in (1, 2))
    both = jaxpeft.merge(jaxpeft.blend([one, two]))["layers_0"]["attn"]["q"]
    w, w1, w2 = (
      np.asarray(p["layers_0"]["attn"]["q"])
      for p in (model.params, jaxpeft.merge(one), jaxpeft.merge(two))
    )
    np.testing.assert_allclose(both, w1 + w2 - w, atol=2e-5)


def test_a_weight_adapted_in_one_tree_only_is_taken_from_it(model):
  one = tuned(model, jaxpeft.LoRA(), 1, match="layers_.*/attn/q")
  two = tuned(model, jaxpeft.LoRA(), 2, match="layers_.*/attn/k")
  merged = jaxpeft.merge(jaxpeft.blend([one, two]))
  for name, tree in (("q", one), ("k", two)):
    want = jaxpeft.merge(tree)["layers_0"]["attn"][name]
    np.testing.assert_allclose(merged["layers_0"]["attn"][name], want, atol=1e-6)


@pytest.mark.parametrize(
  ("how", "density"),
  [
    ("linear", 1.0),
    ("svd", 1.0),
    ("ties", 0.4),
    ("ties_svd", 0.4),
    ("magnitude_prune", 0.3),
    ("magnitude_prune_svd", 0.3),
    ("cat", 1.0),
  ],
)
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, -0.4)])
def test_blends_equal_pefts(how, density, weights):
  torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
  layer = torch.nn.Sequential(torch.nn.Linear(24, 40, bias=False))
  config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["0"])
  theirs = peft.get_peft_model(layer, config, adapter_name="one")
  theirs.add_adapter("two", config)
  torch.manual_seed(0)
  module = theirs.base_model.model[0]
  for name in ("one", "two"):
    torch.nn.init.normal_(module.lora_A[name].weight)
    torch.nn.init.normal_(module.lora_B[name].weight)
  theirs.base_model.add_weighted_adapter(
    ["one", "two"], list(weights), "both", combination_type=how, density=density
  )
  want = module.get_delta_weight("both").detach().numpy().T
  w = jnp.asarray(module.base_layer.weight.detach().numpy().T)

  def tree(name):
    a, b = module.lora_A[name].weight, module.lora_B[name].weight
    theta = dict(a=a.detach().numpy().T, b=b.detach().numpy().T)
    theta = {k: jnp.asarray(x) for k, x in theta.items()}
    return {"x": jaxpeft.Adapted(dict(w=w), theta, jaxpeft.LoRA(rank=4, alpha=6.0))}

  ours = {"cat": "sum"}.get(how, how)
  got = jaxpeft.blend([tree("one"), tree("two")], weights, ours, density=density)
  got = jaxpeft.merge(got)["x"] - w
  np.testing.assert_allclose(got, want, atol=1e-4)


def test_dare_keeps_the_mean_and_the_density():
  x = jnp.ones((100, 100))
  (kept,) = _drop(jax.random.key(0), [x], 0.25)
  assert float(kept.mean()) == pytest.approx(1.0, abs=0.05)
  assert float((kept != 0).mean()) == pytest.approx(0.25, abs=0.02)


def test_dare_drops_other_entries_with_another_key(model):
  match = "layers_.*/attn/q"
  trees = [tuned(model, jaxpeft.LoRA(rank=4), seed, match) for seed in (1, 2)]

  def blend(seed, how):
    both = jaxpeft.blend(trees, how=how, density=0.5, key=jax.random.key(seed))
    return np.asarray(both["layers_0"]["attn"]["q"].dense())

  for how in ("dare_linear", "dare_ties", "dare_linear_svd"):
    one, again, other = (blend(seed, how) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3


def test_blends_of_other_bases_are_refused_also_on_other_weights(model):
  other = model.replace(params=jax.tree.map(lambda x: 1.1 * x, model.params))
  one = tuned(model, jaxpeft.LoRA(), 1, match="layers_.*/attn/q")
  two = tuned(other, jaxpeft.LoRA(), 2, match="layers_.*/attn/k")
  with pytest.raises(InputError, match="another base"):
    jaxpeft.blend([one, two])


@pytest.mark.parametrize(
  ("adapters", "options", "message"),
  [
    ((jaxpeft.IA3(), jaxpeft.IA3()), {}, "no low-rank update"),
    ((jaxpeft.PiSSA(rank=4), jaxpeft.LoRA(rank=4)), {}, "another w"),
    ((jaxpeft.SVF(), jaxpeft.LoRA(rank=4)), {}, "another w|no low-rank"),
    (
      (jaxpeft.SVFT(off_diagonals=1), jaxpeft.SVFT(off_diagonals=2)),
      {},
      "different options",
    ),
    (
      (jaxpeft.LoRA(rank=4), jaxpeft.LoRA(rank=8)),
      dict(how="linear"),
      "differ in rank",
    ),
    ((jaxpeft.LoRA(), jaxpeft.LoRA()), dict(how="mean"), "way to blend"),
    ((jaxpeft.LoRA(), jaxpeft.LoRA()), dict(how="ties", density=0.0), "density"),
    ((jaxpeft.LoRA(), jaxpeft.LoRA()), dict(weights=[1.0]), "1 weights"),
  ],
)
def test_what_does_not_blend_is_refused(adapters, options, message, model):
  trees = [tuned(model, adapter, 0) for adapter in adapters]
  with pytest.raises(InputError, match=message):
    jaxpeft.blend(trees, **options)
