"""A compiled training step of jaxpeft, ready to be timed by the other benchmarks."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxpeft
from jaxpeft import experiment, model, objectives
from jaxpeft.config import base as default_config
from jaxpeft.run_data import Data
from jaxpeft.training import optimizer


class Ready(NamedTuple):
  """A compiled step with its state."""

  step: Callable[[], float]  # takes one step, and returns its seconds
  compiled: Any
  jaxpr: Any
  params: Any  # of the adapted model


def ready(shape, adapter, rows, length, remat="products", fraction=1.0) -> Ready:
  """A compiled step of AdamW on random tokens, all of them supervised.

  Args:
    shape: fields of the model's `ModelConfig`; its head_dim is 64.
    adapter: the adapter for all seven projections.
    rows, length: shape of the batch.
    remat: as in config.model.remat.
    fraction: share of the tokens that carry gradient.
  """
  config = jaxpeft.ModelConfig("llama", head_dim=64, max_positions=512, **shape)
  net = jaxpeft.Transformer(config, remat=remat)
  c = default_config()
  fields = {f.name: getattr(adapter, f.name) for f in dataclasses.fields(adapter)}
  name = type(adapter).__name__
  c.adapt.main = dict(fields, name=name, match="layers_.*/(attn|mlp)/.*")
  c.tokens.fraction, c.optim.lr, c.optim.clip_norm = fraction, 1e-4, 0.0
  c.optim.schedule, c.optim.warmup = "constant", 0.0
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
  base = jaxpeft.Model(net, model.init(net, 0), None, "random")
  objective = objectives.from_config(c)
  tx, rate = optimizer.make(c.train.steps, **c.optim)
  rows_ = Data([{name: x[0] for name, x in batch.items()}], [], [], [])
  prepared = experiment.Prepared(objective, tx, rate, base, rows_)
  exp = experiment.make(c, prepared)
  state, batch = exp.state, exp.batch(0)
  traced = exp.make_step().trace(state, exp.frozen, batch)
  compiled = traced.lower().compile()

  def step():
    nonlocal state
    clock = time.perf_counter()
    state, metrics = compiled(state, exp.frozen, batch)
    jax.block_until_ready(metrics)
    return time.perf_counter() - clock

  return Ready(step, compiled, traced.jaxpr.jaxpr, exp.adapted().params)
