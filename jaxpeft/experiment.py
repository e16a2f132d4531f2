"""From a config to everything that a run needs: the one place that assembles it.

`prepare` checks the options and reads model and data; `make` adapts the model and
builds the optimizer's state; `abstract` is the same assembly on shapes, for planning.
train.py, eval.py, exports, notebooks and benchmarks all start here.
"""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxpeft import adapters, console, objectives, options, run_data, tree
from jaxpeft import model as models
from jaxpeft.checkpoints import adapter as adapter_files
from jaxpeft.errors import InputError
from jaxpeft.evaluation import judges
from jaxpeft.evaluation.kept import KeptAsk
from jaxpeft.generation.ask import Ask, LocalAsk
from jaxpeft.objectives import head
from jaxpeft.parallel import distributed, sharding
from jaxpeft.quantization import nf4
from jaxpeft.run_data import Data
from jaxpeft.training import ahead, first_gradients, optimizer, step, trackers, workdir


class Prepared(NamedTuple):
  """A run whose options, model and data are good; nothing is written or adapted yet."""

  config: Any  # with the number of steps, if it follows from the data
  objective: objectives.Objective
  tx: Any  # the gradient transformation
  rate: Any  # step -> learning rate
  base: models.Model
  data: Data


class Experiment(NamedTuple):
  """Everything that a run needs, ready for its first step."""

  config: Any
  model: models.Model  # without parameters: they are in `state` and `frozen`
  objective: objectives.Objective
  tx: Any  # the gradient transformation
  rate: Any  # step -> learning rate
  state: step.TrainState
  frozen: Any  # the frozen partition
  meta: dict  # of the adapter's file, with the frozen partition's fingerprint
  data: Data
  early: Any = None  # an `Ahead` of the step, where `make` began to compile it

  def batch(self, number: int) -> dict:
    """The microbatches [accumulate, B / accumulate, ...] of a step."""
    return step.split(self.data.batches[number], self.config.train.accumulate)

  def make_step(self):
    """step(state, frozen, batch) -> (state, metrics), jitted; see `training.step`."""
    net = self.model.transformer
    return step.make_step(net, self.tx, self.objective, self.config.seed)

  def compile_step(self, state, batch):
    """`make_step` compiled for such a state and batch."""
    return self.compile_timed(state, batch)[0]

  def compile_timed(self, state, batch):
    """(`make_step` compiled for such a state and batch, seconds that it took)."""
    arguments = state, self.frozen, batch
    begun = self.early and self.early.get(*arguments)
    return begun or ahead.now(self.make_step(), *arguments)

  def adapted(self, trainable=None) -> models.Model:
    """The adapted model; None takes the trainable partition of `state`."""
    trainable = self.state.trainable if trainable is None else trainable
    return self.model.replace(params=tree.combine(trainable, self.frozen))

  def save_adapter(self, directory, trainable, **more):
    """Writes an adapter of this run; `more` is added to its metadata."""
    stored = adapters.kept(self.frozen)
    adapter_files.save(directory, trainable, self.meta | more, stored)


def enter_mesh(mesh):
  """Puts a mesh in force for the rest of the program; None is a single device."""
  if mesh is not None:
    jax.set_mesh(mesh)


def ask(config, tuned: models.Model, label: str = "answers", kept: bool = False) -> Ask:
  """The model as the evaluation asks it; if `kept`, through answers kept on disk."""
  e = config.eval
  if e.task == "preference":
    return judges.of_run(config, tuned, label)
  local = LocalAsk(
    tuned.transformer, tuned.params, tuned.tokenizer, e.max_new_tokens,
    options.sampling(config), config.seed, e.batch_size, label, e.drafts,
  )  # fmt: skip
  return KeptAsk(local) if kept else local


def prepare(
  config,
  base: models.Model | None = None,
  found: Callable[[dict], None] = lambda hashes: None,
) -> Prepared:
  """Everything of a run that can fail on its options, its model or its data.

  Options come first, then data, then the model, which may take minutes to read.

  Args:
    config: of the run.
    base: its base model, if at hand; None reads it.
    found: called with the hashes of the data files before the model is read; it may
      refuse them.
  Raises:
    InputError: options that are wrong or do not fit the model; data or a model that
      cannot be used.
  """
  tx, rate = optimizer.make(config.train.steps, **config.optim)
  options.check(config)
  trackers.check(config.log.tracker)
  objective = objectives.from_config(config)
  rows = run_data.rows(config)
  found(rows.hashes)
  if base is None:
    console.note(f"reading {config.model.source} ...")
    base = read_base(config)
  check(config, base, tx)
  data = run_data.read(config, base, rows)
  if config.train.epochs is not None:
    config = run_data.with_steps(config, data.batches)
    tx, rate = optimizer.make(config.train.steps, **config.optim)
  run_data.warn(config, rows)
  step.split(data.batches[0], config.train.accumulate)
  return Prepared(config, objective, tx, rate, base, data)


def make(
  config, prepared: Prepared | None = None, start=None, early: bool = False
) -> Experiment:
  """The run, ready for its first step.

  Args:
    config: of the run.
    prepared: what `prepare` gave, if at hand. Drop it afterwards: it holds the base's
      weights, some of which the adapted model may not need.
    start: directory of an adapter of this run, for the frozen leaves that cannot be
      made again from the base; its theta is left to the caller. None starts anew.
    early: whether to compile the step meanwhile, in another thread.
  """
  config, objective, tx, rate, base, found = prepared or prepare(config)
  step_ = _begin_step(config, objective, tx, base, found) if early else None
  given = found.batches if start is None else None
  trainable, frozen, meta = _adapt(config, base, given, start)
  state = step.init_state(trainable, tx)
  bare = base.replace(params=None)
  return Experiment(
    config, bare, objective, tx, rate, state, frozen, meta, found, step_
  )


def abstract(config, devices) -> Experiment:
  """The run as shapes, on devices that need not be there: no weight is read.

  `state` and `frozen` are shapes with shardings over a mesh of the devices, as
  `config.mesh` lays it; the data are one empty batch, and there is no tokenizer.

  Raises:
    InputError: options that no run could have.
  """
  options.check(config)
  m, t = config.model, config.train
  net, _ = models.architecture(m.source, m.dtype, m.groups, m.remat, m.quantize)
  objective = objectives.from_config(config)
  tx, rate = optimizer.make(t.steps, **config.optim)

  def start():
    params = models.init(net, 0)
    return _assemble(config, nf4.quantize_tree(params) if m.quantize else params, tx)

  state, frozen = jax.eval_shape(start)
  empty = objective.batch([[]] * t.batch_size, config.data.max_tokens)
  sizes = {name: config.mesh[name] for name in ("data", "fsdp", "tensor")}
  sizes = sharding.fill(sizes, len(devices))
  mesh = sharding.named(sizes, config.mesh.sequence, devices)
  trees = (state, frozen)
  if len(devices) == 1:
    places = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), trees)
  else:
    places = tuple(sharding.shardings(x, mesh) for x in trees)
  state, frozen = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), trees, places
  )
  bare = models.Model(net, None, None, m.source)
  found = Data([empty], [], [], [])
  return Experiment(config, bare, objective, tx, rate, state, frozen, {}, found)


def read_base(config) -> models.Model:
  """The model of `config.model`, not adapted, on the mesh in force."""
  return models.load(**config.model, seed=config.seed)


def check(config, base: models.Model, tx=None):
  """Refuses, before anything is written, what would only fail later.

  Args:
    config: of the run.
    base: its base model.
    tx: its gradient transformation, which may not fit what the adapters train.
  Raises:
    InputError: adapters that do not fit the model, or sizes that the mesh cannot
    divide.
  """
  sharding.check(
    base.config,
    config.train.batch_size // config.train.accumulate,
    config.data.max_tokens,
    bool(config.model.quantize),
  )
  run_data.check_batch(config, base.config)
  rules, score = adapters.from_config(config.adapt), objectives.from_config(config).head
  head.check(base.params, rules, score)
  if tx is not None:
    jax.eval_shape(lambda params: _assemble(config, params, tx), base.params)


def adapter_folder(workdir_) -> pathlib.Path:
  """Where a finished run has its adapter.

  Raises:
    InputError: the run is not finished.
  """
  folder = pathlib.Path(workdir_) / "adapter"
  if not folder.exists():
    raise InputError(
      f"{workdir_} has no adapter/: its training is not finished; "
      "run the same train.py command to go on"
    )
  return folder


def load_run(workdir_, config=None, base_model=None) -> models.Model:
  """The adapted model that a finished run left: its adapter, on its base.

  Args:
    workdir_: a run's directory.
    config: its config, if parts were changed; None reads it.
    base_model: its base, if at hand.
  Raises:
    InputError: the directory is no run, the run is not finished, or its base is not the
      one that it was trained on.
  """
  config = config or workdir.read_config(workdir_)
  folder = adapter_folder(workdir_)
  base = base_model or read_base(config)
  like, frozen, meta = _adapt(config, base, start=folder)
  trainable = adapter_files.load(folder, like, meta["fingerprint"])
  return base.replace(params=tree.combine(trainable, frozen))


def _begin_step(config, objective, tx, base: models.Model, found: Data):
  """An `Ahead` of the training step; None on a mesh, whose processes act in order."""
  if sharding.current() is not None or distributed.count() > 1:
    return None
  function = step.make_step(base.transformer, tx, objective, config.seed)
  batch = sharding.place_batch(step.split(found.batches[0], config.train.accumulate))
  trees = lambda params: _assemble(config, params, tx)  # noqa: E731
  return ahead.Ahead(function, lambda: (*jax.eval_shape(trees, base.params), batch))


def _assemble(config, params, tx):
  """(state, frozen) of a base's params; for `jax.eval_shape`: gradients are zeros."""
  rules, score = adapters.from_config(config.adapt), objectives.from_config(config).head
  params = head.adapt(params, rules, jax.random.key(0), {}, score)
  trainable, frozen = tree.partition(params, tree.trainable_mask(params))
  return step.init_state(trainable, tx), frozen


def _adapt(config, base: models.Model, given=None, start=None):
  """(trainable, frozen, meta) of a base adapted by `config.adapt`.

  Args:
    given: the run's batches, where a method starts from their gradients.
    start: see `make`. Give this or `given`.
  """
  rules, objective = adapters.from_config(config.adapt), objectives.from_config(config)
  # A stream of its own: the adapter's draws must not repeat those of a random model.
  key = jax.random.fold_in(jax.random.key(config.seed), 1)
  net, count = base.transformer, config.train.accumulate
  found = first_gradients.of_batches(net, base.params, rules, given, count, objective)
  params = head.adapt(base.params, rules, key, found, objective.head)
  if start is not None:
    params = adapter_files.load_kept(start, params)
  params = sharding.place(params)
  trainable, frozen = tree.partition(params, tree.trainable_mask(params))
  mark = adapter_files.fingerprint(frozen)
  meta = adapter_files.describe(params, key, mark) | dict(base=config.model.source)
  return trainable, frozen, meta
