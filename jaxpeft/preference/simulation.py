"""Choices drawn from a model, as its story tells it: utility plus noise."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft.errors import InputError
from jaxpeft.preference import models
from jaxpeft.preference.choices import Choices, made
from jaxpeft.preference.models import Model


def simulate(
  model: Model, utilities, shown, key: jax.Array, tie: float | None = None
) -> Choices:
  """One choice, or one ranking, for each row of shown items.

  Args:
    model: the model.
    utilities: float[I].
    shown: int[n, K], distinct items of each row; K = 2 for a model with ties.
    key: a JAX key.
    tie: as in `chances`.

  Raises:
    InputError: an argument is not valid.
  """
  utilities, shown = np.asarray(utilities, np.float64), np.asarray(shown)
  if shown.ndim == 2 and shown.shape[1] > 2 and not model.ties:
    models.check_shown(model, utilities, shown.reshape(-1, 1).repeat(2, 1), tie)
  else:
    models.check_shown(model, utilities, shown, tie)
  if not len(shown):
    raise InputError("no items are shown")
  first, even = _draw(model, utilities[shown], key, tie)
  ranked = np.take_along_axis(shown, first, 1)
  return made(ranked[~even], None, ranked[even], None, (), len(utilities))


def _draw(model: Model, utilities: np.ndarray, key: jax.Array, tie: float | None):
  """(int[n, K], the places in order of preference; bool[n], where there is a tie)."""
  if model.ties == "davidson":  # not a random utility: its three outcomes are drawn
    pair = np.array([[0, 1]])
    with jax.enable_x64(True):
      difference = jnp.asarray(utilities[:, 0] - utilities[:, 1])
      win, neither = models.pair_logs(model, difference, math.log(tie or 1))
      loss, _ = models.pair_logs(model, -difference, math.log(tie or 1))
    logs = np.stack([win, neither, loss], 1)
    outcome = (logs + _noise("gumbel", key, logs.shape)).argmax(1)
    return np.where(outcome[:, None] == 2, pair[:, ::-1], pair), outcome == 1
  seen = utilities + _noise(model.noise, key, utilities.shape)
  even = np.zeros(len(seen), bool)
  if model.ties:
    even = np.abs(seen[:, 0] - seen[:, 1]) < tie
  return np.argsort(-seen, axis=1), even


def _noise(name: str, key: jax.Array, shape) -> np.ndarray:
  draw = dict(gumbel=jax.random.gumbel, normal=jax.random.normal)[name]
  with jax.enable_x64(True):
    return np.asarray(draw(key, shape, np.float64))
