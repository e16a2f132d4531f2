"""One optimizer step, as a pure function of state, frozen partition and batch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpeft import tree
from jaxpeft.adapters import dropout
from jaxpeft.errors import InputError
from jaxpeft.objectives import Objective, Supervised
from jaxpeft.parallel import sharding


class TrainState(NamedTuple):
  """Everything that changes during training, and everything that a checkpoint holds."""

  trainable: Any  # the trainable partition, float32
  opt: Any  # the optimizer's state for it
  step: jax.Array  # int32[], steps taken
  bad_step: jax.Array  # int32[], the first step that was not finite; or -1


def init_state(trainable, tx) -> TrainState:
  """The state before the first step; copies `trainable`, since steps donate it."""
  trainable = jax.tree.map(jnp.array, trainable)
  state = TrainState(trainable, tx.init(trainable), jnp.int32(0), jnp.int32(-1))
  return sharding.place(state)


def make_loss(transformer, objective: Objective):
  """loss(trainable, frozen, batch) -> (total, (weight, metrics)), to be differentiated.

  The batch has no axis of microbatches, and a "key" if the objective is random or an
  adapter has dropout.
  """

  def loss(trainable, frozen, batch):
    batch = dict(batch)
    key = batch.pop("key", None)
    params = tree.combine(trainable, frozen)
    if key is not None:
      params = dropout.with_keys(params, jax.random.fold_in(key, 2))
    found = objective.loss(transformer, params, batch, key)
    return found.total, (found.weight, found.metrics)

  return loss


def make_step(transformer, tx, objective: Objective = Supervised(), seed: int = 0):
  """step(state, frozen, batch) -> (state, metrics), jitted, donating the state.

  The batch has a leading axis of microbatches. Their summed gradients are divided by
  the sum of their weights at the end, so that accumulation equals the big batch even
  where microbatches differ in supervised tokens.

  From the first step whose loss, gradient or update is not finite, the state stands
  still, `bad_step` is that step, and the state must not be saved any more. (An update
  that is not finite is found in the parameters that it wrote.)

  Args:
    transformer: the model.
    tx: the gradient transformation.
    objective: what is trained.
    seed: of what the objective leaves to chance, together with the step.
  """
  grad_fn = jax.value_and_grad(make_loss(transformer, objective), has_aux=True)

  def step(state, frozen, batch):
    if objective.random or dropout.wanted(frozen):
      key = jax.random.fold_in(jax.random.key(seed), state.step)
      batch = batch | dict(key=jax.random.split(key, _microbatches(batch)))
    (loss, (found, metrics)), grads = _accumulate(
      grad_fn, state.trainable, frozen, batch
    )
    count = jnp.where(found > 0, found, 1)  # no chosen token may be supervised
    grads = sharding.stored(jax.tree.map(lambda g: g / count, grads))
    norm = optax.tree.norm(grads)
    updates, opt = tx.update(grads, state.opt, state.trainable)
    moved = optax.apply_updates(state.trainable, updates)
    good = (state.bad_step < 0) & jnp.isfinite(loss + norm)
    new = TrainState(moved, opt, state.step + 1, state.bad_step)
    new = jax.tree.map(lambda n, o: jnp.where(good, n, o), new, state)
    # Checks what was written: a check of the updates would keep them all in memory.
    good &= jnp.isfinite(optax.tree.norm(new.trainable))
    bad = jnp.where((state.bad_step < 0) & ~good, state.step, state.bad_step)
    new = new._replace(bad_step=bad)
    new = sharding.stored(new)
    metrics = {name: x / count for name, x in metrics.items()}
    metrics |= dict(loss=loss / count, grad_norm=norm, tokens=found, bad_step=bad)
    return new, metrics

  return jax.jit(step, donate_argnums=0)


def make_eval(transformer, objective: Objective = Supervised()):
  """evaluate(params, batch) -> `Loss`, jitted; see `Objective`."""

  @jax.jit
  def evaluate(params, batch):
    return objective.loss(transformer, params, batch)

  return evaluate


def split(batch: dict[str, np.ndarray], accumulate: int) -> dict[str, np.ndarray]:
  """A batch [B, ...] as microbatches [accumulate, B / accumulate, ...].

  Raises:
    InputError: if the number of microbatches does not divide the batch.
  """
  rows = _microbatches(batch)
  if accumulate < 1 or rows % accumulate:
    raise InputError(
      f"train.accumulate {accumulate} does not divide train.batch_size {rows}"
    )
  return {k: x.reshape(accumulate, -1, *x.shape[1:]) for k, x in batch.items()}


def _microbatches(batch) -> int:
  """The length of the leading axis."""
  return jax.tree.leaves(batch)[0].shape[0]


def _accumulate(grad_fn, trainable, frozen, batch):
  """Sums of `grad_fn` over the leading axis: ((loss, (weight, metrics)), grads)."""
  if _microbatches(batch) == 1:
    return grad_fn(trainable, frozen, jax.tree.map(lambda x: x[0], batch))

  def add(total, microbatch):
    return jax.tree.map(jnp.add, total, grad_fn(trainable, frozen, microbatch)), None

  first = jax.tree.map(lambda x: x[0], batch)
  (loss, aux), _ = jax.eval_shape(grad_fn, trainable, frozen, first)
  sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (loss, aux))
  grads = jax.tree.map(jnp.zeros_like, trainable)
  return jax.lax.scan(add, (sums, grads), batch)[0]
