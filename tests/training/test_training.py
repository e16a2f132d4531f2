"""The training step, and train.py and eval.py as a user runs them."""

import json
import pathlib
import signal
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

import jaxpeft
from jaxpeft import assets, tree
from jaxpeft.data import batches, encode, sources, tokenizer
from jaxpeft.evaluation import evaluate, intervals
from jaxpeft.objectives import Supervised, cross_entropy, supervised
from jaxpeft.training import optimizer
from jaxpeft.training import step as training
from tests.support.methods import LINEARS

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def setup():
  """(transformer, trainable, frozen, batches) of a small run."""
  model = jaxpeft.load("embedded", dtype="float32")
  params = jaxpeft.adapt(model.params, {LINEARS: jaxpeft.LoRA()}, jax.random.key(0))
  split = jaxpeft.partition(params, jaxpeft.trainable_mask(params))
  rows = sources.embedded("two_step/train")[:64]
  items = encode.encode(rows, model.tokenizer, 128, "completion").examples
  return model.transformer, *split, batches.make(items, 192, 4, True, seed=0)


def test_cross_entropy_equals_torch():
  torch = pytest.importorskip("torch")
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(2, 5, 11)).astype(np.float32) * 3
  targets = rng.integers(0, 11, (2, 5))
  weights = (rng.random((2, 5)) < 0.6).astype(np.float32)
  want = torch.nn.functional.cross_entropy(
    torch.tensor(logits).reshape(-1, 11),
    torch.tensor(targets).reshape(-1),
    reduction="none",
  )
  loss, count = cross_entropy.cross_entropy(lambda x: x, logits, targets, weights)
  assert float(loss) == pytest.approx(
    float((want.numpy() * weights.ravel()).sum()), 1e-5
  )
  assert count == weights.sum()


@pytest.mark.parametrize("accumulate", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_accumulation_equals_the_big_batch_also_with_uneven_tokens(setup, accumulate):
  net, trainable, frozen, data = setup
  batch = data[0]
  batch["weights"][:2] *= np.random.default_rng(0).random((2, 192)) < 0.2
  counts = batch["weights"].reshape(accumulate, -1).sum(1)
  assert counts.min() < 0.7 * counts.max(), "or a mean of means would pass"
  step = training.make_step(net, optax.sgd(1.0))
  ends = [
    step(
      training.init_state(trainable, optax.sgd(1.0)), frozen, training.split(batch, n)
    )
    for n in (1, accumulate)
  ]
  (one, m1), (many, m2) = ends
  assert float(m1["loss"]) == pytest.approx(float(m2["loss"]), rel=1e-5)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), one.trainable, trainable)
  largest = max(jax.tree.leaves(moved))
  chex.assert_trees_all_close(one.trainable, many.trainable, atol=1e-5 * largest)


def test_clipping_sees_the_trainable_gradient_only(setup):
  net, trainable, frozen, data = setup
  tx, _ = optimizer.make(10, **options(name="sgd", lr=1.0, clip_norm=1e-3))
  state = training.init_state(trainable, tx)
  new, metrics = training.make_step(net, tx)(state, frozen, training.split(data[0], 1))
  assert metrics["grad_norm"] > 1e-2
  moved = jax.tree.map(lambda a, b: a - b, new.trainable, trainable)
  assert float(optax.tree.norm(moved)) == pytest.approx(1e-3, rel=1e-3)


def options(**changes):
  return (
    dict(
      name="adamw",
      lr=1e-2,
      schedule="constant",
      warmup=0.0,
      final_lr=0.0,
      clip_norm=0.0,
      weight_decay=0.0,
      options={},
    )
    | changes
  )


def test_the_state_stands_still_from_the_first_bad_step_on(setup):
  net, trainable, frozen, data = setup
  tx = optax.adam(1e-3)
  step = training.make_step(net, tx)
  state = training.init_state(trainable, tx)
  state, _ = step(state, frozen, training.split(data[0], 1))
  good = jax.tree.map(np.array, state.trainable)
  bad = training.split(data[1], 1)
  bad["weights"] = bad["weights"] * np.inf
  for batch in (bad, training.split(data[2], 1)):
    state, metrics = step(state, frozen, batch)
    assert metrics["bad_step"] == 1
  assert state.step == 1
  chex.assert_trees_all_equal(good, state.trainable)


def test_an_update_that_is_not_finite_is_told(setup):
  net, trainable, frozen, data = setup
  tx = optax.sgd(lambda step: jnp.where(step == 1, jnp.inf, 1e-3))
  step = training.make_step(net, tx)
  state, told = training.init_state(trainable, tx), []
  for i in range(3):
    state, metrics = step(state, frozen, training.split(data[i], 1))
    told.append(int(metrics["bad_step"]))
  assert told == [-1, 1, 1]


@pytest.mark.parametrize(
  ("kind", "want"),
  [
    ("constant", (0.5, 1.0, 1.0, 1.0)),
    ("linear", (0.5, 1.0, 0.55, 0.1)),
    ("cosine", (0.5, 1.0, 0.55, 0.1)),
  ],
)
def test_schedules_at_start_peak_middle_and_end(kind, want):
  rate = optimizer.schedule(1.0, kind, 0.02, 0.1, 100)
  got = [float(rate(step)) for step in (0, 2, 51, 100)]
  np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize(
  "name", ["sgd", "adamw", "lion", "muon", "prodigy", "adafactor"]
)
def test_optimizers_of_optax_are_known_by_name(name):
  tx, _ = optimizer.make(10, **options(name=name))
  params = {"w": jnp.ones((4, 4))}
  tx.update(params, tx.init(params), params)


def test_held_out_loss_is_over_tokens_not_batches(setup):
  net, trainable, frozen, _ = setup
  params = jaxpeft.combine(trainable, frozen)
  rows = sources.embedded("two_step/test")[:7]
  items = encode.encode(rows, tokenizer.load(assets.TINY), 128, "completion").examples
  fn = training.make_eval(net)
  rows = [batches.to_arrays([[e]], 128) for e in items]
  want = [supervised.loss(net, params, row) for row in rows]
  want = sum(float(x.total) for x in want) / sum(float(x.weight) for x in want)
  for size in (1, 3):
    got = evaluate.loss(fn, Supervised(), params, items, 128, size)
    assert got == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(
  ("hits", "count", "want"), [(0, 10, (0, 0.2775)), (50, 100, (0.4038, 0.5962))]
)
def test_wilson_interval(hits, count, want):
  np.testing.assert_allclose(intervals.wilson(hits, count), want, atol=1e-4)


# ---- the commands ----------------------------------------------------------------

QUICK = [
  "--config.train.steps=12",
  "--config.train.log_every=2",
  "--config.train.save_every=4",
  "--config.train.eval_every=6",
  "--config.train.batch_size=4",
  "--config.data.limit=100",
  "--config.eval.limit=8",
  "--config.eval.batch_size=8",
  "--config.eval.loss_limit=16",
  "--config.eval.max_new_tokens=8",
]


def command(script, *args):
  return [sys.executable, str(ROOT / script), *map(str, args)]


def run(script, *args, status=0, **kwargs):
  got = subprocess.run(
    command(script, *args), capture_output=True, text=True, cwd=ROOT, **kwargs
  )
  assert got.returncode == status, got.stderr[-3000:]
  return got


def train(workdir, *args, config="svft_banded", **kwargs):
  config = f"--config={ROOT}/configs/{config}.py"
  return run("train.py", config, f"--workdir={workdir}", *QUICK, *args, **kwargs)


def struck(workdir, status, **mishap):
  """What train.py says on stderr until a mishap of tests/support/mishap.py ends it."""
  args = (f"--config={ROOT}/configs/svft_banded.py", f"--workdir={workdir}", *QUICK)
  script = ("tests/support/mishap.py", json.dumps([mishap]), ROOT / "train.py")
  return run(*script, *args, status=status).stderr


def lines(workdir, timeless=True):
  """metrics.jsonl, without what depends on the clock or on the process."""
  text = (workdir / "metrics.jsonl").read_text()
  out = [json.loads(line) for line in text.splitlines()]
  own = {"tokens_per_s", "wall_s", "time", "elapsed_s", "process_memory_bytes"}
  return [{k: v for k, v in x.items() if not (timeless and k in own)} for x in out]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """The directory of a run that nothing disturbed."""
  workdir = tmp_path_factory.mktemp("runs") / "whole"
  train(workdir)
  return workdir


def theta(workdir):
  return safetensors.numpy.load_file(workdir / "adapter" / "adapter.safetensors")


def test_a_run_leaves_what_it_promises(finished):
  final = lines(finished, timeless=False)[-1]
  for key in (
    "base_accuracy",
    "accuracy",
    "accuracy_ci95",
    "trainable_parameters",
    "adapter_bytes",
    "peak_memory_bytes",
    "wall_s",
  ):
    assert final[key] is not None, key
  assert final["final"] is True
  assert final["trainable_parameters"] == 58_912
  assert final["adapter_bytes"] == 4 * 58_912
  first = next(x for x in lines(finished) if "eval_loss" in x)
  assert (first["step"], first["eval_loss"]) == (0, final["first_eval_loss"])
  assert final["eval_loss"] < final["first_eval_loss"]
  logged = [line["step"] for line in lines(finished) if "loss" in line]
  assert logged == [2, 4, 6, 8, 10, 12]
  for name in ("config.json", "loss.png", "checkpoints", "adapter", "tensorboard"):
    assert (finished / name).exists(), name
  assert (finished / "loss.png").read_bytes()[:4] == b"\x89PNG"
  text = (finished / "answers.jsonl").read_text()
  answers = [json.loads(line) for line in text.splitlines()]
  assert len(answers) == final["problems"]
  for name, samples in (("adapted", "samples"), ("base", "base_samples")):
    assert [x[f"{name}_text"] for x in answers[:3]] == final[samples]
  right = sum(x["adapted_correct"]["strict"] for x in answers)
  assert right / len(answers) == final["accuracy"]


def test_running_a_finished_run_again_changes_nothing(finished):
  before = (finished / "metrics.jsonl").read_bytes()
  assert "is finished" in train(finished).stderr
  assert (finished / "metrics.jsonl").read_bytes() == before


def test_eval_gives_the_accuracy_that_training_gave(finished, tmp_path):
  out = tmp_path / "eval.json"
  shown = run("eval.py", f"--ckpt={finished}", f"--out={out}").stdout
  report, final = json.loads(out.read_text()), lines(finished)[-1]
  assert report["accuracy"] == final["accuracy"]
  assert report["accuracy_ci95"] == final["accuracy_ci95"]
  assert [a["text"] for a in report["answers"][:3]] == final["samples"]
  assert report["loss"] == pytest.approx(final["eval_loss"], rel=1e-6)
  assert "accuracy, strict" in shown


def test_load_run_is_the_adapted_model(finished):
  model = jaxpeft.load_run(finished)
  final = lines(finished)[-1]
  texts = model.generate(final["prompts"], max_new_tokens=8)
  assert texts == final["samples"]


@pytest.mark.slow
def test_a_run_killed_while_it_saves_resumes(finished, tmp_path):
  """SIGKILL before a checkpoint that Orbax has written gets its name."""
  workdir = tmp_path / "saving"
  struck(workdir, -9, signal=9, at="commit")
  assert list((workdir / "checkpoints").glob("*tmp*")), "it was killed too late"
  assert not list((workdir / "checkpoints").glob("[0-9]")), "nothing is committed"
  train(workdir)
  assert lines(workdir) == lines(finished)
  chex.assert_trees_all_equal(theta(workdir), theta(finished))


@pytest.mark.slow
def test_a_run_killed_anywhere_ends_as_if_it_was_not(finished, tmp_path):
  """SIGKILL at three steps; tools/kill_drill.py kills at random moments."""
  workdir = tmp_path / "killed"
  for step in (3, 5, 10):
    struck(workdir, -9, signal=9, step=step)
  train(workdir)
  assert lines(workdir) == lines(finished)
  chex.assert_trees_all_equal(theta(workdir), theta(finished))


@pytest.mark.slow
def test_a_run_killed_while_it_answers_at_its_end_finishes(finished, tmp_path):
  """SIGKILL when all is trained and saved, and the result is not yet written."""
  workdir = tmp_path / "answering"
  struck(workdir, -9, signal=9, at="answers")
  assert (workdir / "adapter").exists()
  end = lines(workdir)[-1]
  assert end["step"] == 12
  assert "final" not in end
  train(workdir)
  assert lines(workdir) == lines(finished)
  chex.assert_trees_all_equal(theta(workdir), theta(finished))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on(finished, tmp_path, number):
  workdir = tmp_path / "stopped"
  stderr = struck(workdir, 128 + number, signal=number, step=3)
  assert "saved at step 3" in stderr
  assert "Traceback" not in stderr
  train(workdir)
  chex.assert_trees_all_equal(theta(workdir), theta(finished))


def test_nothing_compiles_after_the_second_step(setup):
  net, trainable, frozen, data = setup
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
  )
  tx, _ = optimizer.make(10, **options())
  step, fn = training.make_step(net, tx), training.make_eval(net)
  state = training.init_state(trainable, tx)
  for i in range(6):
    state, metrics = step(state, frozen, training.split(data[i], 1))
    value = evaluate.loss(
      fn, Supervised(), tree.combine(state.trainable, frozen), data.rows[0], 192, 2
    )
    if i == 1:
      assert compiled, "the listener must hear compilations at all"
      compiled.clear()
    float(metrics["loss"]), float(value)
  assert not compiled


@pytest.mark.slow
def test_keep_best_and_patience(tmp_path):
  workdir = tmp_path / "run"
  train(
    workdir,
    "--config.optim.lr=30.0",
    "--config.train.patience=1",
    "--config.train.eval_every=2",
    "--config.train.steps=40",
  )
  final = lines(workdir)[-1]
  assert final["ended_early"]
  assert final["step"] < 40
  held = {
    x["step"]: x["eval_loss"]
    for x in lines(workdir)
    if "eval_loss" in x and "final" not in x and x["step"]
  }
  assert final["adapter_step"] == min(held, key=held.get)
  assert (
    json.loads((workdir / "adapter/adapter.json").read_text())["step"]
    == (final["adapter_step"])
  )


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_with_the_last_good_state(tmp_path):
  got = train(
    tmp_path / "run",
    "--config.optim.lr=1e9",
    "--config.optim.clip_norm=0.0",
    config="full",
    status=2,
  )
  assert "not finite at step" in got.stderr
  assert "optim.lr" in got.stderr
  assert "Traceback" not in got.stderr


@pytest.mark.slow
def test_a_run_whose_chosen_tokens_have_no_loss_is_refused(tmp_path):
  options = ("--config.tokens.fraction=0.1", "--config.tokens.choose=prefix")
  got = train(tmp_path / "run", *options, "--config.train.log_every=1", status=2)
  assert "nothing is learned: set tokens.choose" in got.stderr
  assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.slow
def test_real_gsm8k_runs_through_the_same_path(tmp_path, data_dir):
  folder, workdir = data_dir / "gsm8k", tmp_path / "gsm8k"
  got = train(
    workdir,
    f"--config.data.train={folder}/train.jsonl",
    "--config.data.max_tokens=1024",
    f"--config.data.eval={folder}/test.jsonl",
    "--config.train.steps=3",
    "--config.eval.max_new_tokens=4",
  )
  assert "100 examples" in got.stderr
  assert "cut to" not in got.stderr
  shown = run("eval.py", f"--ckpt={workdir}", "--limit=12", "--max_new_tokens=4").stdout
  assert "12 problems" in shown


@pytest.mark.parametrize("vocab", [100, 150_000])
def test_loss_in_chunks_is_the_loss_of_all_logits(vocab):
  """Optax' cross-entropy of all logits at once."""
  keys = jax.random.split(jax.random.key(0), 4)
  hidden = jax.random.normal(keys[0], (3, 50, 8))
  head = jax.random.normal(keys[1], (8, vocab))
  targets = jax.random.randint(keys[2], (3, 50), 0, vocab)
  weights = jax.random.uniform(keys[3], (3, 50))

  def whole(hidden, head):
    each = optax.softmax_cross_entropy_with_integer_labels
    return (each(hidden @ head, targets) * weights).sum()

  def parts(hidden, head):
    return cross_entropy.cross_entropy(lambda h: h @ head, hidden, targets, weights)[0]

  want, got = (jax.value_and_grad(f, (0, 1))(hidden, head) for f in (whole, parts))
  chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-5)
  _, count = cross_entropy.cross_entropy(lambda h: h @ head, hidden, targets, weights)
  assert float(count) == pytest.approx(float(weights.sum()), rel=1e-6)


def test_loss_of_a_large_vocabulary_holds_no_table_of_logits():
  """Batch 4 x 1024, width 1024, 151,936 words: all logits are 2.5 GB."""
  shapes = [((4, 1024, 1024), "float32"), ((1024, 151_936), "float32")]
  shapes += [((4, 1024), "int32"), ((4, 1024), "float32")]

  def loss(hidden, head, targets, weights):
    return cross_entropy.cross_entropy(lambda h: h @ head, hidden, targets, weights)[0]

  abstract = [jax.ShapeDtypeStruct(*x) for x in shapes]
  compiled = jax.jit(jax.grad(loss)).lower(*abstract).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 1e9
