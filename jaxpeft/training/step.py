"""One optimizer step, as a pure function of state, frozen partition and batch."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpeft import tree
from jaxpeft.errors import InputError
from jaxpeft.objectives import cross_entropy, token_selection
from jaxpeft.parallel import sharding
from jaxpeft.transformer.attention import Where
from jaxpeft.transformer.decoder import Stream


class TrainState(NamedTuple):
  """All that changes during training, and all that a checkpoint holds."""

  trainable: Any  # the trainable partition, float32
  opt: Any  # the optimizer's state for it
  step: jax.Array  # int32[], steps taken
  bad_step: jax.Array  # int32[], first step that was not finite; or -1


def init_state(trainable, tx) -> TrainState:
  """The state before the first step; copies `trainable`, since steps donate it."""
  trainable = jax.tree.map(jnp.array, trainable)
  state = TrainState(trainable, tx.init(trainable), jnp.int32(0), jnp.int32(-1))
  return sharding.place(state)


def loss_sum(transformer, params, batch, constant=None):
  """(summed loss in nats, supervised tokens) of one batch; see `data.batches`.

  Args:
    transformer: the model.
    params: its parameters.
    batch: arrays [B, T]; if "noise" [B, T, D] is among them, it is added to embeddings.
    constant: like `batch`: tokens of the same rows that are only seen.
  """

  def score(to_logits, hidden):
    return cross_entropy.cross_entropy(
      to_logits, hidden, batch["targets"], batch["weights"]
    )

  beside = None if constant is None else _stream(constant)
  return transformer.apply(
    {"params": params}, *_stream(batch), score=score, constant=beside
  )


def token_losses(transformer, params, batch):
  """Each token's loss, float32[B, T], without a gradient."""

  def score(to_logits, hidden):
    return cross_entropy.of_tokens(to_logits, hidden, batch["targets"])

  params = jax.lax.stop_gradient(params)
  return transformer.apply({"params": params}, *_stream(batch), score=score)


def token_attention(transformer, params, batch):
  """How much attention each token gets in all layers, float32[B, T]; no gradient."""
  params = jax.lax.stop_gradient(params)
  _, kept = transformer.apply(
    {"params": params}, *_stream(batch), keep="attention", score=lambda *_: None
  )
  return sum(group.sum(0) for group in kept)


def _stream(batch) -> Stream:
  where = Where(batch["position"], batch["segment"])
  return Stream(batch["tokens"], where, batch.get("noise"))


def make_loss(transformer, neftune: float = 0.0, selection=None):
  """loss(trainable, frozen, batch) -> (summed loss, supervised tokens), to train on.

  The batch has no axis of microbatches, and a "key" if anything is left to chance.
  Args as `make_step` has them.
  """
  selection = selection or token_selection.Selection()

  def loss_fn(trainable, frozen, batch):
    params = tree.combine(trainable, frozen)
    batch = dict(batch)
    key = batch.pop("key", None)
    if neftune:
      shape = (*batch["tokens"].shape, transformer.config.width)
      size = neftune / math.sqrt(shape[1] * shape[2])
      batch["noise"] = size * jax.random.uniform(key, shape, minval=-1.0)
    if selection.fraction == 1:
      return loss_sum(transformer, params, batch)
    passes = token_selection.Passes(
      losses=functools.partial(token_losses, transformer, params, batch),
      attention=functools.partial(token_attention, transformer, params, batch),
    )
    parts = token_selection.split(selection, jax.random.fold_in(key, 1), batch, passes)
    return loss_sum(transformer, params, *parts)

  return loss_fn


def make_step(transformer, tx, neftune: float = 0.0, seed: int = 0, selection=None):
  """step(state, frozen, batch) -> (state, metrics), jitted, donating the state.

  The batch has a leading axis of microbatches. Their summed gradients are divided by
  all their supervised tokens at the end, so that accumulation equals the big batch
  also where microbatches differ in tokens.

  From the first step whose loss or gradient is not finite on, the state stands still;
  an update that is not finite is seen in what it wrote. Either way `bad_step` is that
  step, and the state is not to be saved any more.

  Args:
    transformer: the model.
    tx: the gradient transformation.
    neftune: alpha of uniform noise on the embeddings, of size alpha / sqrt(T D); 0 is
      none. Source: Jain et al. 2023, arXiv:2310.05914.
    seed: of that noise and of the choice of tokens, together with the step.
    selection: `token_selection.Selection` of those that carry gradient; None is all.
  """
  loss_fn = make_loss(transformer, neftune, selection)
  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
  chance = neftune or (selection and selection.fraction < 1)

  def step(state, frozen, batch):
    if chance:
      key = jax.random.fold_in(jax.random.key(seed), state.step)
      batch = batch | dict(key=jax.random.split(key, len(batch["tokens"])))
    (loss, found), grads = _accumulate(grad_fn, state.trainable, frozen, batch)
    count = jnp.where(found > 0, found, 1)  # none of the chosen may be supervised
    grads = sharding.stored(jax.tree.map(lambda g: g / count, grads))
    norm = optax.tree.norm(grads)
    updates, opt = tx.update(grads, state.opt, state.trainable)
    moved = optax.apply_updates(state.trainable, updates)
    good = (state.bad_step < 0) & jnp.isfinite(loss + norm)
    new = TrainState(moved, opt, state.step + 1, state.bad_step)
    new = jax.tree.map(lambda n, o: jnp.where(good, n, o), new, state)
    # Of what was written: to wait for all updates would keep them in memory.
    good &= jnp.isfinite(optax.tree.norm(new.trainable))
    bad = jnp.where((state.bad_step < 0) & ~good, state.step, state.bad_step)
    new = new._replace(bad_step=bad)
    new = sharding.stored(new)
    metrics = dict(loss=loss / count, grad_norm=norm, tokens=found, bad_step=bad)
    return new, metrics

  return jax.jit(step, donate_argnums=0)


def gradients(transformer, params, paths, batches) -> dict:
  """{path: float32 gradient of the mean loss}: starts of LoRA-GA and LoRA-One.

  Needs the memory of these gradients twice over, beside the weights.

  Args:
    transformer: the model.
    params: of the base, not adapted.
    paths: of the weights, e.g. the keys of `adapters.match`.
    batches: iterable of batches as of `data.batches`; the mean is over their
      supervised tokens.
  """
  wanted = set(paths)
  missing = wanted - tree.flatten(params).keys()
  if missing:
    raise InputError(
      f"{sorted(missing)[0]} has no gradient: it is in 4 bits, or not in the model; "
      "LoRA-GA and LoRA-One need model.quantize=''"
    )
  mask = tree.unflatten({path: path in wanted for path in tree.flatten(params)}, params)
  chosen, rest = tree.partition(params, mask)

  def loss_fn(chosen, rest, batch):
    return loss_sum(transformer, tree.combine(chosen, rest), batch)

  @functools.partial(jax.jit, donate_argnums=0)
  def add(total, chosen, rest, batch):
    (_, count), grads = jax.value_and_grad(loss_fn, has_aux=True)(chosen, rest, batch)
    return jax.tree.map(lambda t, g: t + g, total, (count, grads))

  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), chosen)
  total = (jnp.float32(0), zeros)
  for batch in batches:
    total = add(total, chosen, rest, batch)
  count, grads = total
  grads = jax.tree.map(lambda g: g / count, grads)
  return tree.flatten(grads)


def _accumulate(grad_fn, trainable, frozen, batch):
  """Sums over the leading axis: ((loss, tokens), grads)."""
  count = jax.tree.leaves(batch)[0].shape[0]
  if count == 1:
    return grad_fn(trainable, frozen, jax.tree.map(lambda x: x[0], batch))

  def add(total, microbatch):
    return jax.tree.map(jnp.add, total, grad_fn(trainable, frozen, microbatch)), None

  zeros = jax.tree.map(jnp.zeros_like, trainable)
  start = ((jnp.float32(0), jnp.float32(0)), zeros)
  return jax.lax.scan(add, start, batch)[0]


def split(batch: dict[str, np.ndarray], accumulate: int) -> dict[str, np.ndarray]:
  """A batch [B, ...] as microbatches [accumulate, B / accumulate, ...].

  Raises:
    InputError: if they do not divide the batch.
  """
  rows = len(batch["tokens"])
  if accumulate < 1 or rows % accumulate:
    raise InputError(
      f"train.accumulate {accumulate} does not divide train.batch_size {rows}"
    )
  return {k: x.reshape(accumulate, -1, *x.shape[1:]) for k, x in batch.items()}


def make_eval(transformer):
  """evaluate(params, batch) -> (summed loss, supervised tokens), jitted."""
  return jax.jit(lambda params, batch: loss_sum(transformer, params, batch))
