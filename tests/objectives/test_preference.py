"""DPO and its relatives: against TRL's trainers, and by what must not change."""

import contextlib
import dataclasses
import itertools
import json
import math
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from ml_collections import config_dict
from safetensors.numpy import load_file

import jaxpeft
from jaxpeft import adapters, config, experiment, options, tree
from jaxpeft import model as models
from jaxpeft.data import pairs
from jaxpeft.data.examples import Example
from jaxpeft.errors import InputError
from jaxpeft.objectives import pair_losses, preference
from jaxpeft.objectives.gradients import gradients
from jaxpeft.objectives.pair_losses import Side
from jaxpeft.objectives.preference import Preference
from jaxpeft.parallel import sharding
from jaxpeft.training import first_gradients
from jaxpeft.training import step as training
from jaxpeft.transformer.config import ModelConfig
from jaxpeft.transformer.decoder import Transformer
from tests.support import meshes
from tests.support.methods import ADAPTERS, LINEARS, METHODS, START, adapt, perturbed

TRL = load_file(pathlib.Path(__file__).parent / "trl_preference.safetensors")
RATE = 0.5  # of the stored step; these are also in tools/make_preference_fixture.py
LENGTHS = ((4, 5, 3), (6, 2, 4), (3, 6, 6))  # prompt, chosen, rejected
SHORT = tuple((1, chosen, rejected) for _, chosen, rejected in LENGTHS)
CASES = {
  "sigmoid": Preference(beta=0.3),
  "ipo": Preference("ipo", 0.1),
  "hinge": Preference("hinge", 0.5),
  "smooth": Preference(beta=0.3, label_smoothing=0.1),
  "nll": Preference(beta=0.3, nll=0.5),
  "free": Preference(beta=0.1, label_smoothing=0.2, reference_free=True),
  "free_hinge": Preference("hinge", 0.1, reference_free=True),
  "free_ipo": Preference("ipo", 0.5, reference_free=True),
  "simpo": Preference("simpo", 2.0, gamma=1.0),
  "simpo_nll": Preference("simpo", 2.0, gamma=1.0, nll=0.5),
  "orpo": Preference("orpo", 0.25),
}


@pytest.fixture(scope="module")
def model():
  return jaxpeft.load("embedded", dtype="float32")


def examples(lengths=LENGTHS, margins=()):
  """Groups of random tokens, the same as in the script that made TRL's numbers."""
  rng, out = np.random.default_rng(1), []
  for i, some in enumerate(lengths):
    prompt, *answers = (rng.integers(3, 400, n) for n in some)
    ids = [np.concatenate([prompt, answer]) for answer in answers]
    learned = [np.arange(len(x)) >= len(prompt) for x in ids]
    margin = margins[i] if margins else 0.0
    arrays = np.concatenate(ids).astype(np.int32), np.concatenate(learned)
    out.append(Example(*arrays, margin))
  return out


def batch(rows, tokens=32):
  return jax.tree.map(jnp.asarray, pairs.to_arrays(rows, tokens))


def policy(model):
  """(trainable, frozen) of the toy with the LoRA of TRL's numbers."""
  rules = {"layers_.*/attn/v": jaxpeft.LoRA(rank=1, alpha=2.0)}
  params = jaxpeft.adapt(model.params, rules, jax.random.key(0))
  node = params["layers_0"]["attn"]["v"]
  rng, factors = np.random.default_rng(0), dict(a=[], b=[])
  for _ in range(len(node.theta["a"])):
    for side, x in factors.items():
      shape = node.theta[side].shape[1:][::-1]
      x.append(0.2 * rng.normal(size=shape).astype(np.float32).T)
  theta = {side: jnp.asarray(np.stack(x), jnp.float32) for side, x in factors.items()}
  params["layers_0"]["attn"]["v"] = dataclasses.replace(node, theta=theta)
  return tree.partition(params, tree.trainable_mask(params))


@pytest.fixture(scope="module")
def passes(model):
  """(trainable, frozen, rows, slope) -> (losses, reference's losses, gradient)."""

  @jax.jit
  def run(trainable, frozen, rows, slope):
    def losses(trainable):
      params = tree.combine(trainable, frozen)
      return preference.token_losses(model.transformer, params, rows)

    found, back = jax.vjp(losses, trainable)
    base = adapters.reference(tree.combine(trainable, frozen))
    other = preference.token_losses(model.transformer, base, rows)
    return found, other, back(slope)[0]

  return run


@pytest.mark.parametrize("name", CASES)
def test_losses_metrics_and_gradients_are_those_of_trl(name, model, passes):
  objective, given = CASES[name], policy(model)
  some = examples(SHORT if name == "orpo" else LENGTHS)
  rows = batch([[x] for x in some])
  losses, other, _ = passes(*given, rows, jnp.zeros(rows["tokens"].shape))
  other = other if objective.reference else None

  def total(losses):
    found = objective.of_losses(losses, other, rows)
    return found.total / found.weight, found

  (value, found), slope = jax.jit(jax.value_and_grad(total, has_aux=True))(losses)
  assert found.weight == 3
  np.testing.assert_allclose(value, TRL[f"{name}/loss"][0], rtol=1e-5)
  got = {k: float(x) / 3 for k, x in found.metrics.items()}
  which = "change" if objective.reference else "logp"
  mine = [objective.beta * got[f"{side}_{which}"] for side in ("chosen", "rejected")]
  mine += [got["accuracy"], got["margin"]]
  if name != "free_ipo":  # TRL's metrics are per token there, ours only in the loss
    np.testing.assert_allclose(mine, TRL[f"{name}/metrics"], rtol=1e-5, atol=1e-5)
  _, _, grads = passes(*given, rows, slope)
  for side, got in zip("ab", jax.tree.leaves(grads), strict=True):
    want = TRL[f"{name}/grad_{side}"]
    # Rounding differs with the number of threads by 2e-5 of the largest entry.
    np.testing.assert_allclose(got, want, 1e-5, atol=4e-5 * np.abs(want).max())


def test_a_step_is_that_of_trl_however_it_is_packed_and_split(model):
  """One step of SGD, of pairs one after another and of all pairs in one row."""
  objective, (trainable, frozen) = CASES["nll"], policy(model)
  tx, first, some = optax.sgd(RATE), {}, examples()
  step = training.make_step(model.transformer, tx, objective)
  alone = [[x] for x in some]
  for rows, accumulate in ((alone, 3), ([some[::-1]], 1)):
    state = training.init_state(trainable, tx)
    micro = training.split(batch(rows, 64), accumulate)
    state, metrics = step(state, frozen, micro)
    for side, x in zip("ab", jax.tree.leaves(state.trainable), strict=True):
      np.testing.assert_allclose(x, TRL[f"nll/step_{side}"], rtol=1e-5, atol=2e-6)
    metrics = {k: float(x) for k, x in metrics.items()}
    assert metrics["tokens"] == 3
    assert metrics["loss"] == pytest.approx(TRL["nll/loss"][0], rel=1e-5)
    first = first or metrics
    assert metrics == pytest.approx(first, rel=1e-4)


# A model small enough to compile for every method.
CONFIG = ModelConfig(
  family="llama", vocab_size=400, width=32, depth=1, heads=2, kv_heads=2, head_dim=16,
  ff=64, max_positions=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def small():
  net = Transformer(CONFIG)
  return net, models.init(net, 0)


QUICK = ("full", "dora", "svf-ref")


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(x, marks=[] if x in QUICK else pytest.mark.slow)
    for x in METHODS.values()
  ],
)
def test_every_method_starts_at_log_2_or_is_refused(name, small):
  """Until something is learned, the policy is the reference."""
  (net, params), method = small, ADAPTERS[name]
  rows, params = batch([examples()], 64), adapt(params, ADAPTERS[name])
  if not method.has_identity:
    with pytest.raises(InputError, match=rf"{type(method).__name__} on .*'orpo'"):
      Preference().loss(net, params, rows)
    return
  found = Preference().loss(net, params, rows)
  limit = 0.01 if name in START or name == "svf-ref" else 1e-5
  assert found.weight == 3
  assert float(found.total) / 3 == pytest.approx(math.log(2), abs=limit)
  assert abs(found.metrics["margin"]) < 10 * limit


def naive(net, objective, params, base, groups):
  """The mean over groups of the loss of all their pairs, a row for each text."""
  texts = [(prompt, x) for prompt, answers, _ in groups for x in answers]
  ids = np.zeros((len(texts), max(len(p) + len(x) for p, x in texts)), np.int32)
  for row, (prompt, answer) in zip(ids, texts, strict=True):
    row[: len(prompt) + len(answer)] = [*prompt, *answer]
  scores = []
  for p in (params, base):
    logp = jax.nn.log_softmax(net.apply({"params": p}, ids))
    at = [np.arange(len(p) - 1, len(p) + len(x) - 1) for p, x in texts]
    scores.append([logp[i, t, ids[i, t + 1]].sum() for i, t in enumerate(at)])
  total, policy, other = 0.0, *map(iter, scores)
  for _, answers, margin in groups:
    mine = [next(policy) for _ in answers]
    gains = [x - next(other) for x in mine]
    both = list(itertools.combinations(gains, 2))
    for c, r in both:
      total += jnp.log1p(jnp.exp(margin - objective.beta * (c - r))) / len(both)
    total -= objective.nll * mine[0] / len(answers[0])
  return total / len(groups)


def test_rankings_and_margins_are_those_of_the_formula(small):
  """DPO with a margin, and a ranking as all its pairs, with gradients."""
  net, base = small
  objective = Preference(beta=0.4, nll=0.3)
  some = examples(((4, 5, 3), (2, 3, 2, 4, 1)), (0.7, 0.0))
  split = [(x, len_, pairs._texts(x)) for x, len_ in zip(some, (4, 2), strict=True)]
  groups = [
    (x.tokens[:n], [text.tokens[n:] for text in texts], x.value)
    for x, n, texts in split
  ]
  params = adapt(base, ADAPTERS["lora"])
  trainable, frozen = tree.partition(params, tree.trainable_mask(params))
  trainable, rows = perturbed(trainable, scale=0.1), batch([some], 40)

  @jax.jit
  def both(trainable):
    def ours(trainable):
      found = objective.loss(net, tree.combine(trainable, frozen), rows)
      return found.total / found.weight

    def theirs(trainable):
      return naive(net, objective, tree.combine(trainable, frozen), base, groups)

    return [jax.value_and_grad(f)(trainable) for f in (ours, theirs)]

  (value, grads), (want, wanted) = both(trainable)
  assert float(value) == pytest.approx(float(want), rel=1e-5)
  for got, x in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(got, x, atol=2e-5 * float(jnp.abs(x).max() + 1e-3))


@pytest.mark.parametrize("base", ["", pytest.param("nf4", marks=pytest.mark.slow)])
def test_a_mesh_trains_as_one_device(base):
  net, params = meshes.trained("LoRA", base, match="layers_.*/attn/(q|v)")
  rng = np.random.default_rng(0)
  some = [x._replace(tokens=x.tokens % 64) for x in examples(LENGTHS * 4)]
  rng.shuffle(some)
  rows = training.split(batch([some[i : i + 3] for i in range(0, 12, 3)], 64), 1)
  got = []
  for mesh in (None, meshes.make_mesh((2, 2, 2))):
    tx = optax.sgd(0.1)
    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
      placed = sharding.place(params)
      trainable, frozen = tree.partition(placed, tree.trainable_mask(placed))
      state = training.init_state(trainable, tx)
      step = training.make_step(net, tx, Preference(nll=0.1))
      state, metrics = step(state, frozen, sharding.place_batch(rows))
      got.append(jax.device_get((metrics, state.trainable)))
  assert 0.1 < got[0][0]["loss"] != pytest.approx(math.log(2), rel=1e-3)
  chex.assert_trees_all_close(*got, rtol=2e-4, atol=2e-6)


def test_methods_that_start_from_a_gradient_get_that_of_dpo(small):
  """Half of beta times (gradient of log p of rejected minus chosen), at the base."""
  net, params = small
  rows, path = batch([[x] for x in examples()]), "layers_0/attn/q"
  found = gradients(net, params, [path], [rows], Preference(beta=0.2))[path]

  def half(params):
    losses = preference.token_losses(net, params, rows) * rows["weights"]
    sign = jnp.where(rows["segment"] == 1, 1.0, -1.0)
    return 0.1 * jnp.sum(losses * sign) / 3

  want = jax.jit(jax.grad(half))(params)["layers_0"]["attn"]["q"]
  assert np.abs(want).max() > 1e-5
  np.testing.assert_allclose(found, want, atol=1e-5 * np.abs(want).max())


def test_a_run_starts_from_the_gradient_of_its_own_objective(tmp_path, monkeypatch):
  row, path = dict(prompt="1+1=", chosen=" 2", rejected=" 3"), tmp_path / "rows.jsonl"
  path.write_text(json.dumps(row) + "\n")
  c = config.base()
  c.objective.name, c.objective.beta = "preference", 0.2
  c.adapt.main = dict(name="LoRAGA", match="layers_.*/attn/q", rank=4)
  c.data.train, c.data.eval, c.data.max_tokens, c.eval.task = str(path), "", 32, ""
  c.train.batch_size, seen = 1, []

  def gradients(net, params, paths, batches, objective):
    seen.append((paths, objective))
    return {path: jnp.ones((4, 128, 128)) for path in paths}

  monkeypatch.setattr(first_gradients, "gradients", gradients)
  experiment.make(c)
  assert seen == [(["layers_0/attn/q"], Preference(beta=0.2))]


@pytest.mark.parametrize("kind", pair_losses.KINDS)
def test_gradients_of_the_formulas_are_finite_differences(kind):
  made = Preference(kind, 0.7, **(dict(gamma=0.3) if kind == "simpo" else {}))
  tokens = jnp.array([3.0, 5.0, 2.0])
  scores = jnp.array([-4.0, -0.9, -6.0]), jnp.array([-5.0, -2.5, -1.0])
  margin = jnp.array([0.0, 0.4, 0.0])

  def value(a, b):
    return pair_losses.KINDS[kind].of(made, Side(a, tokens), Side(b, tokens), margin)

  check_grads(value, scores, order=1, modes=["rev"], rtol=1e-2)


def test_equal_scores_are_no_success():
  rows = batch([examples()], 64)
  losses = jnp.ones(rows["tokens"].shape)
  found = Preference().of_losses(losses, losses, rows)
  assert found.metrics["accuracy"] == 0
  assert float(found.total) == pytest.approx(3 * math.log(2))


def test_odds_are_exact_near_0_and_1_and_finite_at_1():
  logp = np.array([-80.0, -5.0, -0.7, -0.69, -1e-2, -2e-6])
  want = logp - np.log(-np.expm1(logp))  # in float64
  np.testing.assert_allclose(
    pair_losses.log_odds(jnp.asarray(logp, jnp.float32)), want, rtol=1e-5
  )
  value, slope = jax.value_and_grad(pair_losses.log_odds)(0.0)
  assert np.isfinite(value)
  assert np.isfinite(slope)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(kind="simp"), "unknown loss in objective.loss 'simp'.*simpo"),
    (dict(beta=0.0), "objective.beta 0.0 is not in"),
    (dict(beta=float("nan")), "objective.beta nan"),
    (dict(label_smoothing=0.5), r"label_smoothing 0.5 is not in \[0, 0.5\)"),
    (dict(nll=-1.0), "objective.nll -1.0"),
    (dict(kind="ipo", label_smoothing=0.1), "'ipo' does not use it; 'sigmoid'"),
    (dict(gamma=1.0), "'sigmoid' does not use it; 'simpo' would"),
    (dict(kind="simpo", reference_free=True), "objective.reference_free is True"),
    (dict(kind="orpo", nll=0.5), "ORPO has the chosen answer's loss with weight 1"),
  ],
)  # fmt: skip
def test_options_out_of_range_or_without_use_are_refused(options, message):
  with pytest.raises(InputError, match=message):
    Preference(**options)


def test_margins_that_a_loss_has_no_place_for_are_refused():
  some = examples(margins=(0.0, 0.5, 0.0))
  with pytest.raises(InputError, match=r"margins, which .*'ipo' does not use"):
    Preference("ipo").batch([some], 64)
  Preference("ipo").batch([examples()], 64)
  Preference("hinge").batch([some], 64)


@pytest.mark.parametrize("method", ["Full", "PiSSA", "MiLoRA", "OLoRA", "LoftQ"])
def test_methods_without_a_reference_are_refused_before_a_model_is_read(method):
  entry = dict(main=dict(name=method, match=LINEARS, rank=4))
  if method == "Full":
    del entry["main"]["rank"]
  c = config.base()
  c.objective.name, c.adapt = "preference", config_dict.ConfigDict(entry)
  with pytest.raises(InputError) as e:
    options.check(c)
  for text in (f"{method} on layers_", "objective.loss='sigmoid'", "'orpo'", "LoRA"):
    assert text in str(e.value)
  c.objective.loss = "orpo"
  options.check(c)
