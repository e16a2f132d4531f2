"""A training step of jaxpeft, compiled and ready to be timed by the benchmarks."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import jaxpeft
from jaxpeft import model
from jaxpeft.objectives import token_selection
from jaxpeft.training import step as training


class Ready(NamedTuple):
  """A compiled step with its state."""

  step: Callable[[], float]  # takes one; its seconds
  compiled: Any
  jaxpr: Any
  params: Any  # adapted


def ready(shape, adapter, rows, length, remat="products", fraction=1.0) -> Ready:
  """A step of AdamW on random tokens, all supervised.

  Args:
    shape: of the model, as of ModelConfig; heads of 64.
    adapter: of all seven projections.
    rows, length: of the batch.
    remat: a key of `layers.REMAT`.
    fraction: of the tokens that carry gradient.
  """
  config = jaxpeft.ModelConfig("llama", head_dim=64, max_positions=512, **shape)
  net = jaxpeft.Transformer(config, remat=remat)
  rules = {"layers_.*/(attn|mlp)/.*": adapter}
  params = jaxpeft.adapt(model.init(net, 0), rules, jax.random.key(0), gradients={})
  trainable, frozen = jaxpeft.partition(params, jaxpeft.trainable_mask(params))
  tx = optax.adamw(1e-4)
  state = training.init_state(trainable, tx)
  rng = np.random.default_rng(0)
  ids = rng.integers(0, config.vocab_size, (1, rows, length), np.int32)
  position = np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape)
  batch = dict(
    tokens=ids,
    targets=ids,
    weights=np.ones(ids.shape, np.float32),
    position=position,
    segment=np.ones_like(ids),
  )
  step_fn = training.make_step(net, tx, selection=token_selection.Selection(fraction))
  traced = step_fn.trace(state, frozen, batch)
  compiled = traced.lower().compile()

  def step():
    nonlocal state
    clock = time.perf_counter()
    state, metrics = compiled(state, frozen, batch)
    jax.block_until_ready(metrics)
    return time.perf_counter() - clock

  return Ready(step, compiled, traced.jaxpr.jaxpr, params)
