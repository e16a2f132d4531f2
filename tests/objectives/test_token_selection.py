"""Token selection: two streams, against the definition by an elementwise mask."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpeft
from jaxpeft import model, tree
from jaxpeft.errors import InputError
from jaxpeft.objectives import Selection, Supervised, supervised, token_selection
from jaxpeft.quantization import nf4
from jaxpeft.training import step as training
from jaxpeft.transformer import attention, decoder, layers
from jaxpeft.transformer import remat as remats
from jaxpeft.transformer.config import ModelConfig, Rope
from jaxpeft.transformer.decoder import Transformer
from tests.support.methods import ADAPTERS, LINEARS, METHODS

PLAIN = ModelConfig(
  family="llama",
  vocab_size=97,
  width=64,
  depth=2,
  heads=4,
  kv_heads=2,
  head_dim=16,
  ff=128,
  max_positions=128,
)
RICH = {
  "gemma2": dict(
    post_norms=True, norm_offset=1.0, attn_softcap=3.0, tied=True, windows=(5, 1 << 30)
  ),
  "qwen": dict(qkv_bias=True, qk_norm="head", windows=(3, 9)),
  "gemma3": dict(ropes=(Rope(), Rope(100.0)), rope_of=(1, 0), windows=(5, 1 << 30)),
  "olmo": dict(pre_norms=False, post_norms=True, qk_norm="width"),
  "mixtral": dict(experts=4, experts_per_token=2),
  "dynamic": dict(
    ropes=(
      Rope(1e4, "dynamic", (("factor", 2.0), ("original_max_position_embeddings", 8))),
    )
  ),
}
LENGTH = 24
LORA = {LINEARS: ADAPTERS["lora"]}


def batch(packed=True, left=False, seed=0):
  """Rows of two examples, or of one with padding on the right or on the left."""
  rng = np.random.default_rng(seed)
  shape = (3, LENGTH)
  position, segment = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
  for r, n in enumerate((24, 17, 9)):
    at = LENGTH - n if left else 0
    position[r, at : at + n] = np.arange(n)
    segment[r, at : at + n] = 1
    if packed and n > 12:
      position[r, at + 7 : at + n] = np.arange(n - 7)
      segment[r, at + 7 : at + n] = 2
  weights = ((rng.random(shape) < 0.5) & (segment > 0)).astype(np.float32)
  out = dict(position=position, segment=segment, weights=weights)
  out |= {k: rng.integers(0, 97, shape).astype(np.int32) for k in ("tokens", "targets")}
  return jax.tree.map(jnp.asarray, out)


@functools.cache
def base(config):
  """Random parameters; of NumPy, since JAX would compile for every shape."""
  rng = np.random.default_rng(0)
  shapes = model.shapes(config, "float32")
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape) / np.sqrt(x.shape[-1]), x.dtype),
    shapes,
  )


def make(rules, config=PLAIN, remat="none", quantize=False, groups=()):
  """(net, trainable, frozen) of a random model whose adapters are off their start."""
  params = base(config)
  if groups:
    stack, first, cut = params["layers_0"], 0, {}
    for i, depth in enumerate(groups):
      part = slice(first, first + depth)
      cut[f"layers_{i}"] = jax.tree.map(lambda x, part=part: x[part], stack)
      first += depth
    params = params | cut
  params = nf4.quantize_tree(params) if quantize else params
  rng = np.random.default_rng(0)
  noise = lambda x: jnp.asarray(rng.normal(size=x.shape), "float32") * 0.05  # noqa: E731
  gradients = {path: noise(x) for path, x in tree.flatten(params).items()}
  params = jaxpeft.adapt(params, rules, jax.random.key(0), gradients)
  trainable, frozen = tree.partition(params, tree.trainable_mask(params))
  trainable = jax.tree.map(lambda x: x + noise(x), trainable)
  return Transformer(config, groups, remat), trainable, frozen


def mean_and_grad(loss_sum, trainable, frozen):
  def mean(trainable):
    total, count, _ = loss_sum(tree.combine(trainable, frozen))
    return total / count

  return jax.jit(jax.value_and_grad(mean))(trainable)


def passes(data):
  losses = 3.0 - data["tokens"] / 97
  return token_selection.Passes(lambda: losses, lambda: losses)


def two_streams(net, trainable, frozen, data, selection, key):
  def loss_sum(params):
    parts = token_selection.split(selection, key, data, passes(data))
    assert parts.constant is not None
    return supervised.loss(net, params, *parts)

  return mean_and_grad(loss_sum, trainable, frozen)


def definition(monkeypatch, net, trainable, frozen, data, selection, key):
  """m x + (1 - m) stop_gradient(x) of all that a token gives: right, frees nothing."""
  index = jnp.broadcast_to(jnp.arange(LENGTH), data["tokens"].shape)
  parts = token_selection.split(selection, key, data | dict(index=index), passes(data))
  rows = jnp.arange(3)[:, None]
  mask = jnp.zeros(data["tokens"].shape).at[rows, parts.chosen["index"]].set(1)

  def masked(f, axes):
    def g(*args):
      outs = f(*args)
      many = outs if isinstance(outs, tuple) else (outs,)
      done = []
      for x, axis in zip(many, axes, strict=True):
        shape = [1] * x.ndim
        shape[0], shape[axis] = mask.shape
        m = mask.reshape(shape)
        done.append(m * x + (1 - m) * jax.lax.stop_gradient(x))
      return tuple(done) if isinstance(outs, tuple) else done[0]

    return g

  with monkeypatch.context() as patch:
    patch.setattr(layers, "_qkv", masked(layers._qkv, (2, 2, 2)))
    patch.setattr(layers, "_finish", masked(layers._finish, (1,)))
    patch.setattr(decoder, "_embed", masked(decoder._embed, (1,)))
    data = data | dict(weights=data["weights"] * mask)
    return mean_and_grad(
      lambda params: supervised.loss(net, params, data), trainable, frozen
    )


def assert_same(got, want, tolerance=1e-5):
  assert float(got[0]) == pytest.approx(float(want[0]), rel=1e-6)
  for path, x in tree.flatten(want[1]).items():
    scale = float(jnp.abs(x).max())
    y = tree.flatten(got[1])[path]
    assert float(jnp.abs(x - y).max()) <= tolerance * scale + 1e-9, path


def compare(monkeypatch, rules, data, selection, **how):
  key = jax.random.key(3)
  parts = make(rules, **how)
  got = two_streams(*parts, data, selection, key)
  plain = make(rules, **how | dict(remat="none"))
  want = definition(monkeypatch, *plain, data, selection, key)
  assert_same(got, want)
  return got


def mixes():
  """All methods, seven to a model: one for each projection."""
  places = [f"attn/{n}" for n in "qkvo"] + [f"mlp/{n}" for n in ("gate", "up", "down")]
  names = list(METHODS.values())
  for first in range(0, len(names), 7):
    some = (names[first:] + names)[:7]
    yield {f"layers_.*/{p}": ADAPTERS[n] for p, n in zip(places, some, strict=True)}


@pytest.mark.parametrize("rules", list(mixes()))
def test_every_method_has_the_gradient_of_the_definition(rules, monkeypatch):
  data = batch()
  got = compare(monkeypatch, rules, data, token_selection.Selection(0.3))
  net, *split = make(rules)
  whole = mean_and_grad(lambda p: supervised.loss(net, p, data), *split)
  first = [jax.tree.leaves(x[1])[0] for x in (got, whole)]
  assert not np.allclose(*first, rtol=0.01), "the choice of tokens makes no difference"


@pytest.fixture(scope="module")
def want():
  """Of the definition over 4 bits."""
  with pytest.MonkeyPatch.context() as patch:
    data, selection = batch(), token_selection.Selection(0.3, "completion")
    return definition(patch, *make(LORA, quantize=True), data, selection,
                      jax.random.key(3))  # fmt: skip


@pytest.mark.parametrize("remat", remats.REMAT)
def test_every_remat_over_4_bits(remat, want):
  parts = make(LORA, remat=remat, quantize=True)
  selection = token_selection.Selection(0.3, "completion")
  assert_same(two_streams(*parts, batch(), selection, jax.random.key(3)), want)


def test_full_fine_tuning_in_segments_and_groups(monkeypatch):
  config = ModelConfig(**vars(PLAIN) | dict(depth=5))
  how = dict(remat="segments,none", groups=(4, 1), config=config)
  rules = {LINEARS: ADAPTERS["full"], "embed": ADAPTERS["full"]}
  compare(monkeypatch, rules, batch(), token_selection.Selection(0.5), **how)


@pytest.mark.parametrize("kind", RICH)
def test_what_differs_between_families(kind, monkeypatch):
  config = ModelConfig(**vars(PLAIN) | RICH[kind])
  rules = {"layers_.*/(attn|mlp|experts)/.*": ADAPTERS["lora"]}
  compare(monkeypatch, rules, batch(), token_selection.Selection(0.4), config=config)


@pytest.mark.parametrize(("choose", "left"), [("completion", True), ("loss", False)])
def test_padding_on_either_side(choose, left, monkeypatch):
  data, selection = (
    batch(packed=False, left=left),
    token_selection.Selection(0.25, choose, 2),
  )
  compare(monkeypatch, LORA, data, selection)


def test_segments_change_no_gradient():
  config = ModelConfig(**vars(PLAIN) | dict(depth=4))
  net, *split = make({LINEARS: ADAPTERS["svft-banded"]}, config, "segments")
  data = batch()
  got, want = (
    mean_and_grad(lambda p, n=n: supervised.loss(n, p, data), *split)
    for n in (net, net.clone(remat="none"))
  )
  assert_same(got, want)


def test_the_split_forward_is_the_plain_one():
  net, trainable, frozen = make(LORA)
  params = tree.combine(trainable, frozen)
  data = batch()
  parts = token_selection.split(
    token_selection.Selection(0.3), jax.random.key(0), data, None
  )
  with_index = token_selection.split(
    token_selection.Selection(0.3),
    jax.random.key(0),
    data | dict(losses=supervised.token_losses(net, params, data)),
    None,
  )
  got, count, _ = supervised.loss(net, params, *parts)
  chosen = with_index.chosen
  want = (chosen["losses"] * chosen["weights"]).sum()
  assert float(got) == pytest.approx(float(want), rel=1e-6)
  assert count == chosen["weights"].sum() > 0


def step_of(selection, data, steps=1, seed=0):
  net, trainable, frozen = make(LORA)
  tx = optax.sgd(0.1)
  objective = Supervised(selection=selection or Selection())
  step = training.make_step(net, tx, objective, seed)
  state = training.init_state(trainable, tx)
  seen = []
  for _ in range(steps):
    state, metrics = step(state, frozen, jax.tree.map(lambda x: x[None], data))
    seen.append(metrics)
  return state, seen, step


def test_all_tokens_is_ordinary_training():
  (a, _, _), (b, _, _) = (
    step_of(s, batch()) for s in (None, token_selection.Selection(1.0, "completion"))
  )
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)


def test_every_step_chooses_anew_from_the_seed_without_compiling_again():
  data = batch()
  a, seen, step = step_of(token_selection.Selection(0.3), data, steps=4)
  assert step._cache_size() == 1
  counts = {float(m["tokens"]) for m in seen}
  assert len(counts) > 1, "the same tokens at every step"
  b, *_ = step_of(token_selection.Selection(0.3), data, steps=4, seed=1)
  leaves = [jax.tree.leaves(s.trainable)[0] for s in (a, b)]
  assert np.abs(leaves[0] - leaves[1]).max() > 0


def test_no_supervised_token_chosen_is_a_step_of_nothing():
  data = batch(packed=False)
  data["weights"] = jnp.zeros_like(data["weights"]).at[:, 8].set(1)
  _, trainable, _ = make(LORA)
  state, (metrics,), _ = step_of(token_selection.Selection(0.1, "prefix"), data)
  assert metrics["loss"] == 0
  assert metrics["bad_step"] == -1
  for x, y in zip(
    jax.tree.leaves(state.trainable), jax.tree.leaves(trainable), strict=True
  ):
    np.testing.assert_array_equal(x, y)


def test_which_tokens_are_chosen():
  data = batch()
  index = jnp.broadcast_to(jnp.arange(LENGTH), (3, LENGTH))
  losses, attention = jax.random.uniform(jax.random.key(1), (2, 3, LENGTH))
  measured = token_selection.Passes(lambda: losses, lambda: attention)

  def chosen(choose, fraction=0.25, always=0, **more):
    selection = token_selection.Selection(fraction, choose, always, **more)
    parts = token_selection.split(
      selection, jax.random.key(0), data | dict(i=index), measured
    )
    both = np.concatenate([parts.chosen["i"], parts.constant["i"]], 1)
    assert (np.sort(both, 1) == np.asarray(index)).all(), "each token once"
    assert (np.diff(parts.chosen["i"], axis=1) > 0).all(), "in their order"
    return parts.chosen

  assert (chosen("random")["segment"] > 0).all(), "padding is the last"
  assert chosen("random")["i"].shape == (3, 6)
  got = chosen("completion")
  some = np.minimum(np.asarray(data["weights"].sum(1)), 6)
  np.testing.assert_array_equal(got["weights"].sum(1), some)
  got = chosen("loss")
  for r in range(3):
    own = np.where(data["weights"][r] > 0, losses[r], -1)
    supervised = np.argsort(-own)[: int(some[r])]
    assert set(supervised) <= set(np.asarray(got["i"][r]))
  assert (chosen("prefix")["position"].max(1) <= 5).all()
  forced = chosen("random", always=2)
  assert (forced["position"] < 2).sum(1).tolist() == [4, 4, 2]
  got = chosen("attention")["i"][0]
  own = np.where(data["weights"][0] > 0, attention[0], 0)
  assert set(got.tolist()) == set(np.argsort(-own)[:6].tolist())
  mine = chosen(lambda key, batch, passes: -batch["targets"].astype(jnp.float32))
  assert mine["targets"].max() < data["targets"].max()
  weighed = chosen("random", fraction=0.5, reweigh=True)
  total = np.where(weighed["weights"].sum(1) > 0, data["weights"].sum(1), 0)
  np.testing.assert_allclose(weighed["weights"].sum(1), total, rtol=1e-6)


@pytest.mark.parametrize("choose", ["loss", "attention"])
def test_a_step_chooses_by_what_a_forward_pass_says(choose):
  net, trainable, frozen = make(LORA)
  data, key = batch(), jax.random.key(0)
  pass_ = dict(loss=supervised.token_losses, attention=supervised.token_attention)[
    choose
  ]
  said = pass_(net, tree.combine(trainable, frozen), data) * (data["weights"] > 0)
  want, by_name = (
    training.make_loss(net, Supervised(selection=Selection(fraction=0.2, choose=c)))
    for c in (lambda key, batch, passes: said, choose)
  )
  args = trainable, frozen, data | dict(key=key)
  chex.assert_trees_all_close(by_name(*args), want(*args), rtol=1e-6)
  assert want(*args)[1][0] > 0


@pytest.mark.parametrize("window", [1 << 30, 6])
@pytest.mark.parametrize("cap", [None, 5.0])
def test_attention_received_is_that_of_the_definition(window, cap, monkeypatch):
  rng = np.random.default_rng(0)
  q = rng.normal(size=(2, 2, 3, 37, 8)).astype("f4")
  k = rng.normal(size=(2, 2, 37, 8)).astype("f4")
  position, segment = np.zeros((2, 37), "i4"), np.ones((2, 37), "i4")
  segment[0, 20:], segment[0, 33:], segment[1, :5] = 2, 0, 0  # two, and padding
  position[0, :20], position[0, 20:] = np.arange(20), np.arange(17)
  position[1] = np.maximum(np.arange(37) - 5, 0)
  where = attention.Where(jnp.asarray(position), jnp.asarray(segment))
  back = position[:, :, None] - position[:, None]
  seen = (segment[:, :, None] == segment[:, None]) & (segment[:, :, None] > 0)
  seen &= (back >= 0) & (back < window)
  s = np.einsum("bkgqn,bksn->bkgqs", q, k) * 0.3
  s = s if cap is None else cap * np.tanh(s / cap)
  p = np.exp(s) * seen[:, None, None]
  p /= np.maximum(p.sum(-1, keepdims=True), 1e-30)
  want = p.sum((1, 2, 3)) / np.maximum(seen.sum(1), 1)
  for numbers in (2**22, 1000):  # in one block of queries, and in several
    monkeypatch.setattr(attention, "_NUMBERS", numbers)
    got = attention.received(q, attention.KV(k, k, where), window, 0.3, cap)
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(
  ("bad", "message"),
  [
    (dict(fraction=0.0), r"tokens.fraction"),
    (dict(fraction=1.5), r"tokens.fraction"),
    (dict(choose="rndom"), r"Did you mean 'random'"),
    (dict(always=-1), r"tokens.always"),
  ],
)
def test_bad_options_are_refused(bad, message):
  with pytest.raises(InputError, match=message):
    token_selection.Selection(**bad)
