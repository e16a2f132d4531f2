"""Gradients of whole weights, from which some adapters start."""

import functools

import jax
import jax.numpy as jnp

from jaxpeft import tree
from jaxpeft.errors import InputError
from jaxpeft.objectives.base import Objective
from jaxpeft.objectives.supervised import Supervised

_SUPERVISED = Supervised()


def gradients(
  transformer, params, paths, batches, objective: Objective = _SUPERVISED
) -> dict:
  """{path: float32 gradient of the mean loss}, from which LoRA-GA and LoRA-One start.

  Needs twice the memory of these gradients, besides the weights.

  Args:
    transformer: the model.
    params: parameters of the base, not adapted.
    paths: paths of the weights, e.g. the keys of `adapters.match`.
    batches: iterable of batches as `data.batches` makes them; the mean is over the
      supervised tokens of all, or over what else the objective counts.
    objective: whose loss it is.
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
    params = tree.combine(chosen, rest)
    total, count, _ = objective.loss(transformer, params, batch)
    return total, count

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
