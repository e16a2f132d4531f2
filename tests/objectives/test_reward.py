"""The reward objective: its loss, its head, and runs with it."""

import contextlib
import dataclasses
import functools
import itertools
import json
import pathlib

import jax
import numpy as np
import optax
import pytest
import safetensors

import jaxpeft
from jaxpeft import config, experiment, tree
from jaxpeft.data import batches, pairs
from jaxpeft.data.examples import Example
from jaxpeft.errors import InputError
from jaxpeft.objectives import head, reward
from jaxpeft.objectives.reward import Reward
from jaxpeft.parallel import sharding
from jaxpeft.planning import memory
from jaxpeft.training import step
from jaxpeft.transformer import decoder
from tests.support.meshes import adapted, make_mesh
from tests.support.methods import LINEARS

TRL = pathlib.Path(__file__).parent / "trl_reward.safetensors"  # by tools/

ROWS = [
  dict(prompt=f"Add {i} and {j}.", chosen=f" {i + j}", rejected=f" {i + j + k} or so")
  for i, j, k in itertools.product((1, 7), (2, 30), (-1, 1))
]
RANKED = [
  dict(prompt="Name a number.", ranked=[" 1", " 22", " 333", " no"]),
  dict(prompt="Name a fish.", ranked=[" a", " b c", " d"]),
]


@pytest.fixture(scope="module")
def model():
  """The toy with a random head and LoRA."""
  found = jaxpeft.load("embedded", dtype="float32")
  params = head.adapt(found.params, {LINEARS: jaxpeft.LoRA(rank=2)}, jax.random.key(0))
  theta, frozen = tree.partition(params, tree.trainable_mask(params))
  rng = np.random.default_rng(0)
  theta = jax.tree.map(
    lambda x: x + 0.05 * rng.normal(size=x.shape).astype("f4"), theta
  )
  return found.replace(params=tree.combine(theta, frozen))


_rewards = jax.jit(reward.rewards, static_argnums=0)


def naive(scores, margin=0.0, smoothing=0.0, center=0.0):
  """-log p of scores in their order, by the definition of Plackett and Luce."""
  s = np.array(scores, float)
  s[0] -= margin

  def losses(s):
    return sum(np.log(np.exp(s[i:]).sum()) - s[i] for i in range(len(s)))

  total = (1 - smoothing) * losses(s) + smoothing * losses(s[::-1])
  return total + center * np.sum(scores) ** 2


@pytest.mark.parametrize("options", [{}, dict(smoothing=0.2), dict(center=0.3)])
def test_loss_is_the_definition_for_pairs_and_rankings(options):
  """Groups of 2, 3 and 8 texts, with padding between what rows hold."""
  rng = np.random.default_rng(1)
  sizes = [[2, 3], [8], [2, 2, 2]]
  group, scores = np.zeros((4, 10), np.int32), np.zeros((4, 10), np.float32)
  margin, want, wins, gaps, means = np.zeros((4, 10), np.float32), 0, 0, 0, 0
  for r, row in enumerate(sizes):
    at = 0
    for g, n in enumerate(row, 1):
      x = rng.normal(size=n).astype("f4") * 2
      group[r, at : at + n], scores[r, at : at + n] = g, x
      own = 0.7 if n == 2 else 0.0
      margin[r, at] = own
      want += naive(x, own, **options)
      both = list(itertools.combinations(x, 2))
      wins += np.mean([a > b for a, b in both])
      gaps += np.mean([a - b for a, b in both])
      means += x.mean()
      at += n
  names = dict(smoothing="label_smoothing")
  named = {names.get(key, key): x for key, x in options.items()}
  found = reward.of_scores(scores, group, margin, **named)
  np.testing.assert_allclose(found.total, want, rtol=1e-5)
  assert found.weight == 6
  np.testing.assert_allclose(found.metrics["accuracy"], wins, rtol=1e-5)
  np.testing.assert_allclose(found.metrics["margin"], gaps, rtol=1e-4)
  np.testing.assert_allclose(found.metrics["reward"], means, rtol=1e-4)


def test_a_pair_of_equal_rewards_is_not_right():
  group = np.array([[1, 1]], np.int32)
  zeros = np.zeros((1, 2), np.float32)
  found = reward.of_scores(zeros, group, zeros)
  assert found.metrics["accuracy"] == 0
  np.testing.assert_allclose(found.total, np.log(2), rtol=1e-6)


def test_rewards_are_the_head_on_the_last_token_packed_or_padded(model):
  """Against the model's hidden states of each text alone."""
  found = pairs.encode(ROWS + RANKED, model.tokenizer, 200).examples
  net, params, want = model.transformer, model.params, []
  w = np.asarray(params["score"].theta["w"])[:, 0]
  hidden = jax.jit(decoder.hidden, static_argnums=0)
  alone = pairs.to_arrays([[x] for x in found], 200)
  for row in range(len(found)):
    for number in range(1, alone["segment"][row].max() + 1):
      tokens = alone["tokens"][row][alone["segment"][row] == number]
      tokens = np.pad(tokens, (0, 40 - len(tokens)))[None]  # one shape, one program
      stream = decoder.Stream(tokens, decoder.full_rows(tokens.shape))
      end = np.flatnonzero(tokens[0] == model.tokenizer.eos_ids[0])[0]
      want.append(hidden(net, params, stream)[0, end] @ w)
  padded = np.asarray(_rewards(net, params, alone))
  np.testing.assert_allclose(padded[padded != 0], want, atol=1e-5)
  rows = batches.Rows(found, np.arange(len(found)), np.array([0, 3, 5, 9, 10]))
  packed = np.asarray(_rewards(net, params, pairs.to_arrays([*rows], 200)))
  np.testing.assert_allclose(packed[packed != 0], want, atol=1e-5)


def trl(case):
  """(what TRL computed in a case, rows, learning rate, Reward, tokenizer, params)."""
  with safetensors.safe_open(TRL, "np") as file:
    about = json.loads(file.metadata()["about"])
    found = {k: file.get_tensor(k) for k in file.keys() if k.startswith(f"{case}/")}
  found = {k.removeprefix(f"{case}/"): x for k, x in found.items()}
  options = dict(center=dict(center=0.2), padding=dict(pool="hf")).get(case, {})
  rows = [r | (dict(margin=None) if case != "margin" else {}) for r in about["rows"]]
  base = jaxpeft.load("embedded", dtype="float32")
  tokenizer = base.tokenizer
  if case == "padding":
    tokenizer = dataclasses.replace(tokenizer, pad_id=None)
  rules = {"layers_.*/attn/v": jaxpeft.LoRA(rank=1, alpha=2.0)}
  params = head.adapt(base.params, rules, jax.random.key(0))
  return found, rows, about["rate"], Reward(**options), tokenizer, params, base


def put(params, found, kind):
  """Weights of TRL's in the tree; ours of the same names in a dict."""
  v = params["layers_0"]["attn"]["v"]
  theta = {k: found[f"{kind}/{k}"] for k in "ab"}
  params["layers_0"]["attn"]["v"] = dataclasses.replace(v, theta=theta)
  w = dict(w=found[f"{kind}/score"])
  return params | dict(score=dataclasses.replace(params["score"], theta=w))


def flat(theta):
  named = tree.flatten(theta)
  where = "layers_0/attn/v/theta/"
  return dict(a=named[where + "a"], b=named[where + "b"], score=named["score/theta/w"])


@pytest.mark.parametrize("case", ["plain", "margin", "center", "padding"])
def test_equals_trls_reward_trainer(case):
  """Rewards, loss, metrics, gradients and a step of SGD, from the rows' texts on."""
  found, rows, rate, objective, tokenizer, params, base = trl(case)
  params, net = put(params, found, "start"), base.transformer
  groups = [*objective.encode(rows, tokenizer, 200, "x").examples]
  batch = objective.batch([groups], 200)
  scores = _rewards(net, params, batch)[0, :6].reshape(3, 2)
  np.testing.assert_allclose(scores, found["rewards"], atol=1e-5)
  theta, frozen = tree.partition(params, tree.trainable_mask(params))
  state = step.init_state(theta, optax.sgd(rate))
  objective = dataclasses.replace(objective, pool="last")  # it concerns texts only
  moved, metrics = sgd(net, objective, rate)(state, frozen, step.split(batch, 1))
  assert metrics["tokens"] == 3
  np.testing.assert_allclose(metrics["loss"], found["loss"][0], atol=1e-5)
  got = [metrics[name] for name in ("accuracy", "margin", "reward")]
  np.testing.assert_allclose(got, found["metrics"], atol=1e-5)
  for name, x in flat(moved.trainable).items():
    np.testing.assert_allclose(x, found[f"step/{name}"], atol=1e-5)
    slope = (found[f"start/{name}"] - x) / rate
    np.testing.assert_allclose(slope, found[f"grad/{name}"], atol=1e-5)


@functools.cache
def sgd(net, objective, rate):
  return step.make_step(net, optax.sgd(rate), objective)


def run(tmp_path, **changes):
  """A config of a small run on pairs."""
  path = tmp_path / "rows.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in ROWS * 4))
  c = config.base()
  c.objective.name = "reward"
  c.adapt = dict(main=dict(name="LoRA", match=".*/attn/q", rank=2))
  c.data.train = c.data.eval = str(path)
  c.data.max_tokens, c.train.batch_size, c.train.steps, c.eval.task = 128, 4, 2, ""
  c.update_from_flattened_dict(changes)
  return c


def test_a_head_is_added_trained_and_saved(tmp_path):
  """Over a base in 4 bits, with accumulation; the saved adapter gives equal rewards."""
  c = run(tmp_path, **{"model.quantize": "nf4", "train.accumulate": 2})
  exp = experiment.make(c)
  assert set(tree.flatten(exp.state.trainable)) >= {"score/theta/w"}
  state, start = exp.state, np.asarray(exp.state.trainable["score"].theta["w"])
  assert not start.any()
  step_fn = exp.make_step()
  for i in range(2):
    state, metrics = step_fn(state, exp.frozen, exp.batch(i))
  assert {"accuracy", "margin", "reward", "loss"} <= metrics.keys()
  assert np.asarray(state.trainable["score"].theta["w"]).any()
  tuned = exp.adapted(state.trainable)
  exp.save_adapter(tmp_path / "run" / "adapter", state.trainable)
  like = experiment.load_run(tmp_path / "run", c)
  base = experiment.read_base(c)
  loaded = jaxpeft.load_adapter(base.params, tmp_path / "run" / "adapter")
  batch = {k: x[0] for k, x in exp.batch(0).items()}
  want = _rewards(exp.model.transformer, tuned.params, batch)
  for params in (like.params, loaded):
    got = _rewards(exp.model.transformer, params, batch)
    np.testing.assert_array_equal(got, want)


def test_accumulation_and_an_abstract_run_have_the_same_step(tmp_path):
  whole, parts = (
    experiment.make(run(tmp_path, **{"train.accumulate": n})) for n in (1, 4)
  )
  moved = []
  for exp in (whole, parts):
    state, metrics = exp.make_step()(exp.state, exp.frozen, exp.batch(0))
    moved.append((state.trainable, metrics))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *moved)
  shapes = experiment.abstract(run(tmp_path), jax.devices()[:1])
  assert memory.count(shapes)["logits"] == 0
  like = jax.tree.map(lambda x: (x.shape, x.dtype), shapes.data.batches[0])
  assert like == jax.tree.map(lambda x: (x.shape, x.dtype), whole.data.batches[0])
  assert (
    tree.flatten(shapes.state.trainable).keys()
    == tree.flatten(whole.state.trainable).keys()
  )


def test_what_a_reward_model_cannot_start_from_is_refused(tmp_path, model):
  c = run(tmp_path)
  c.adapt.main.name = "LoRAGA"
  with pytest.raises(
    InputError, match="LoRAGA on layers_0/attn/q starts from the loss"
  ):
    experiment.prepare(c)
  bare = {k: x for k, x in model.params.items() if k != "score"}
  batch = pairs.to_arrays([[]], 8)
  with pytest.raises(InputError, match="the model has no reward head"):
    reward.rewards(model.transformer, bare, batch)


def test_rules_leave_the_head_to_itself(model):
  base = dict(final_norm=np.ones(4, "f4"), embed=np.ones((6, 4), "f4"))
  for some in (base, head.added(base)):
    params = head.adapt(some, {".*": jaxpeft.Full()}, jax.random.key(0))
    assert params.keys() == {"final_norm", "embed", "score"}
    assert {type(x.adapter) for x in params.values()} == {jaxpeft.Full}


@pytest.mark.parametrize(
  "sizes", [(2, 1, 1), pytest.param((2, 2, 2), marks=pytest.mark.slow)]
)
def test_a_mesh_trains_as_one_device(sizes):
  """Rewards, loss and one step of SGD, with the groups packed in rows."""
  transformer, base = adapted("LoRA")
  rng = np.random.default_rng(0)
  params = base | head.adapt(plain(base), {"final_norm": jaxpeft.Full()}, KEY)
  start = rng.normal(size=(128, 1)).astype("f4")
  params["score"] = dataclasses.replace(params["score"], theta=dict(w=start))
  groups = []
  for n in (2, 3, 2) * 8:
    ids = rng.integers(3, 64, 5 * n).astype(np.int32)
    groups.append(Example(ids, np.arange(5 * n) % 5 > 2, 0.0))
  rows = [groups[i : i + 3] for i in range(0, 24, 3)]
  found = []
  for on in (None, make_mesh(sizes)):
    with jax.set_mesh(on) if on is not None else contextlib.nullcontext():
      theta, frozen = tree.partition(
        sharding.place(params), tree.trainable_mask(params)
      )
      tx = optax.sgd(0.1)
      batch = step.split(Reward(center=0.1).batch(rows, 40), 2)
      state, metrics = step.make_step(transformer, tx, Reward(center=0.1))(
        step.init_state(theta, tx), frozen, sharding.place_batch(batch)
      )
      found.append(jax.tree.map(np.asarray, (state.trainable, metrics)))
  assert found[0][1]["tokens"] == 24
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *found)


KEY = jax.random.key(0)


def plain(params):
  return dict(final_norm=params["final_norm"])
