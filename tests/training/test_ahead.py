"""A step that is compiled while the model is adapted is the same step."""

import gc
import weakref

import chex
import jax
import jax.numpy as jnp
import pytest

from jaxpeft import config as configs
from jaxpeft import experiment
from jaxpeft.training import ahead
from tests.support.methods import LINEARS


@pytest.mark.parametrize("name", ["SVFT", pytest.param("LoRA", marks=pytest.mark.slow)])
def test_a_run_takes_the_step_that_was_begun_early(name):
  config = configs.base()
  config.adapt.main = dict(name=name, match=LINEARS)
  config.data.limit, config.train.batch_size, config.data.max_tokens = 8, 2, 64
  config.data.eval, config.eval.task = "", ""
  prepared = experiment.prepare(config)
  late = experiment.make(config, prepared)
  early = experiment.make(config, prepared, early=True)
  found, seconds = early.compile_timed(early.state, early.batch(0))
  assert found is early.early.get(early.state, early.frozen, early.batch(0))[0]
  assert seconds > 0
  results = [
    run(exp.state, exp.frozen, exp.batch(0))
    for run, exp in (
      (found, early),
      (late.compile_step(late.state, late.batch(0)), late),
    )
  ]
  chex.assert_trees_all_equal(*results)


def test_what_does_not_fit_is_compiled_again():
  begun = ahead.Ahead(jax.jit(lambda x: x + 1), lambda: (jnp.zeros(3),))
  compiled, seconds = begun.get(jnp.ones(3))
  assert compiled(jnp.ones(3)).tolist() == [2, 2, 2]
  assert seconds > 0
  assert begun.get(jnp.ones(4)) is None
  assert begun.get(jnp.ones(3, jnp.int32)) is None
  assert begun.get(jnp.ones(3), jnp.ones(3)) is None


def test_an_error_is_left_to_who_compiles_again():
  assert ahead.Ahead(jax.jit(lambda x: x @ jnp.zeros(5)), lambda: (jnp.zeros(3),)).get(
    jnp.zeros(3)
  ) is None  # fmt: skip


def test_what_jax_was_told_for_this_thread_alone_is_no_other_program():
  with jax.default_matmul_precision("highest"):
    begun = ahead.Ahead(jax.jit(lambda x: x @ x), lambda: (jnp.zeros((3, 3)),))
    assert begun.get(jnp.zeros((3, 3))) is None


def test_the_weights_are_not_kept():
  class Weights:
    pass

  weights = Weights()
  gone = weakref.ref(weights)
  begun = ahead.Ahead(jax.jit(lambda x: x), lambda w=weights: (jnp.zeros(len("w")),))
  del weights
  begun.get(jnp.zeros(1))
  gc.collect()
  assert gone() is None
