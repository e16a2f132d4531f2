"""Trains several models of one shape in one program: seeds, or learning rates.

The model, its optimizer and its training step are those of `experiment.make`, with all
weights trained. This module maps the step over the members of a group, and scans it
over steps. The text is drawn inside the same program.
Axes: G members, S steps of a chunk, B rows, T tokens, V vocabulary, K order.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpeft import experiment, objectives, tree
from jaxpeft import model as models
from jaxpeft.run_data import Data
from jaxpeft.sweeps.study import grid
from jaxpeft.sweeps.study.source import Source, draw, probabilities
from jaxpeft.training import optimizer
from jaxpeft.transformer import decoder

CHUNK = 20  # steps that one call takes


def check(config):
  """Raises InputError if the config's optimizer, schedule or adapter cannot be made."""
  rates(config, 1.0, grid.FEWEST)
  _experiment(config, grid.transformer(config, grid.sizes(config)[0]))


class Group:
  """The programs for models of one shape, whose members are trained side by side."""

  def __init__(self, config, source: Source, size: grid.Size):
    """Makes the programs, each of which is compiled when it is first called.

    Args:
      config: of the study.
      source: its text.
      size: the shape.
    """
    self._config, self._source = config, source
    self._net = grid.transformer(config, size)
    self._made = _experiment(config, self._net)
    self._advance = jax.jit(self._steps, donate_argnums=0)
    self._score = jax.jit(self._held_out_losses)

  def start(self, seeds):
    """The states of G models before their first step.

    Args:
      seeds: int[G]; each stands for initial weights and for a text.
    """
    one = self._made.state
    weights = [
      jax.tree.leaves(_weights(self._net, k)) for k in _keys(self._config, seeds, 0)
    ]
    leaves = [np.stack(xs) for xs in zip(*weights, strict=True)]
    trainable = jax.tree.unflatten(jax.tree.structure(one.trainable), leaves)
    state = jax.tree.map(lambda x: np.stack([x] * len(seeds)), one)
    return state._replace(trainable=trainable)

  def advance(self, state, seeds, rates, first: int):
    """The states after `CHUNK` more steps.

    Args:
      state: of `start` or `advance`; its memory is taken.
      seeds: as in `start`.
      rates: float[S, G], learning rates; those of steps that do not count are 0.
      first: the number of the first step, which decides the text.
    """
    keys = text_keys(self._config, seeds, first)
    rates = jnp.asarray(rates, jnp.float32)
    return self._advance(state, self._source.chain, keys, rates)

  def losses(self, state) -> np.ndarray:
    """float64[G]: held-out losses in nats per token; infinite where a run diverged.

    All models of a study are scored on the same rows. The loss is the text's entropy
    plus the mean Kullback-Leibler divergence of the model's distribution of the next
    token from the true one. It fluctuates less than -log p of the drawn tokens.
    """
    found = self._score(state.trainable, self._source.chain)
    found = np.asarray(found, np.float64) + self._source.entropy
    good = (np.asarray(state.bad_step) < 0) & np.isfinite(found)
    return np.where(good, found, np.inf)

  def _steps(self, state, chain, keys, rates):
    step = self._made.make_step()
    text = training_text(self._config, chain, keys)

    def one(state, tokens):
      batch = _batch(tokens, self._source.order)
      batch = jax.tree.map(lambda x: x[None], batch)  # a single microbatch
      return step(state, self._made.frozen, batch)[0]

    def body(state, now):
      tokens, rate = now
      state = state._replace(opt=optax.tree.set(state.opt, step_size=rate))
      return jax.vmap(one)(state, tokens), None

    return jax.lax.scan(body, state, (text, rates))[0]

  def _held_out_losses(self, trainable, chain):
    k, text = self._source.order, held_out_text(self._config, chain)
    p = probabilities(chain, text)
    stream = decoder.Stream(text[:, :-1], decoder.full_rows(text[:, :-1].shape))

    def one(trainable):
      params = tree.combine(trainable, self._made.frozen)
      hidden = decoder.hidden(self._net, params, stream)[:, k - 1 :]
      q = jax.nn.log_softmax(decoder.logits(self._net, params, hidden))
      return (p * (jnp.log(p) - q)).sum(-1).mean()

    return jax.lax.map(one, trainable)


def text_keys(config, seeds, first: int):
  """Keys [G] of the text of `CHUNK` steps from a step on, see `training_text`."""
  step, keys = jnp.uint32(first), _keys(config, seeds, 1)
  return jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)


def training_text(config, chain, keys):
  """int32[S, G, B, T + 1]: the rows of `CHUNK` steps of all members."""
  rows, length = config.train.batch_size, config.data.max_tokens + 1
  text = jax.vmap(lambda key: draw(chain, key, CHUNK * rows, length))(keys)
  return text.reshape(-1, CHUNK, rows, length).swapaxes(0, 1)


def held_out_text(config, chain):
  """int32[R, T + 1]: the rows on which all models of a study are measured."""
  key = jax.random.fold_in(jax.random.key(config.seed), 0)
  return draw(chain, key, config.scaling.held_out, config.data.max_tokens + 1)


def rates(config, rate: float, steps: int) -> np.ndarray:
  """float64[steps]: the learning rates of a run with a peak rate; `optim` has the form.

  The schedule ends with the run, so a run with a smaller budget is not a prefix of a
  run with a larger one. In a prefix the rate would still be high, and this biases the
  fit [Hoffmann et al. 2022, section 3 and appendix B].
  """
  o = config.optim
  schedule = optimizer.schedule(rate, o.schedule, o.warmup, o.final_lr, steps)
  found = jax.vmap(schedule)(jnp.arange(steps))
  return np.asarray(found, np.float64)


def _keys(config, seeds, stream: int):
  """Keys [G]: stream 0 is for initial weights, 1 for text."""
  root = jax.random.key(config.seed)
  one = lambda s: jax.random.fold_in(jax.random.fold_in(root, s + 1), stream)  # noqa: E731
  return jax.vmap(one)(jnp.asarray(seeds, jnp.uint32))


def _experiment(config, net) -> experiment.Experiment:
  """The parts of a run of this model; the learning rate is data of its state."""
  fixed: dict[str, Any] = dict(config.optim)
  fixed |= dict(lr=1.0, schedule="constant", warmup=0.0)
  tx, rate = optimizer.make(1, **fixed)
  scaled = optax.inject_hyperparams(optax.scale)(step_size=1.0)
  objective = objectives.from_config(config)
  base = models.Model(net, _weights(net, jax.random.key(0)), None, "random")
  empty = Data([], [], [], [])
  prepared = experiment.Prepared(
    config, objective, optax.chain(tx, scaled), rate, base, empty
  )
  return experiment.make(config, prepared)


@functools.partial(jax.jit, static_argnums=0)
def _weights(net, key):
  """Random float32 parameters."""
  return net.init(key, jnp.zeros((1, 2), jnp.int32))["params"]


def _batch(tokens, order: int):
  """The arrays of `data.batches` for rows int[B, T + 1] of text.

  Tokens that have fewer than `order` tokens before them in their row are not
  supervised: the model could not know what they depend on.
  """
  shape = tokens[:, :-1].shape
  position = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)
  return dict(
    tokens=tokens[:, :-1],
    targets=tokens[:, 1:],
    position=position,
    segment=jnp.ones(shape, jnp.int32),
    weights=(position >= order - 1).astype(jnp.float32),
  )
