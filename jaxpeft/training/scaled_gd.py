"""Scaled gradient descent for low-rank factors, as a step before any optimizer.

Source: Tong et al. 2021; NoRA+, arXiv:2410.18965, and its code.
Axes: i in, o out, r rank.
"""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from jaxpeft.errors import InputError

_EPS = 1e-6


class ScaledState(NamedTuple):
  """State of `scaled_gd`."""

  count: jax.Array  # int32[], steps taken so far


def scaled_gd() -> optax.GradientTransformation:
  """Multiplies each factor's gradient by the inverse Gram matrix of the other factor.

  For factors a [i, r] and b [r, o] with gradients g_a and g_b:
    g_a becomes g_a P / |P|, where P = (b b' + eps I)^-1;
    g_b becomes Q g_b / |Q|, where Q = (a' a + eps I)^-1;
  with Frobenius norms. The first step leaves g_a as it is, because b is zero then.
  A pair is a dict with keys a and b, possibly with a leading axis of layers; all other
  leaves pass unchanged.

  Raises:
    InputError: from `init`, if no adapter has such a pair.
  """

  def init(params):
    if not any(_is_pair(x) for x in jax.tree.leaves(params, is_leaf=_is_pair)):
      raise InputError(
        "optim.precondition scaled_gd needs low-rank factors a and b, but no "
        'adapter has them; use it with LoRA or NoRA, or set optim.precondition=""'
      )
    return ScaledState(jnp.int32(0))

  def update(grads, state, params):
    def one(g, x):
      if not _is_pair(g):
        return g
      p, q = _inverse(x["b"] @ x["b"].mT), _inverse(x["a"].mT @ x["a"])
      a = jnp.where(state.count == 0, g["a"], g["a"] @ p)
      return g | dict(a=a, b=q @ g["b"])

    new = jax.tree.map(one, grads, params, is_leaf=_is_pair)
    return new, ScaledState(state.count + 1)

  return optax.GradientTransformation(init, cast(Any, update))


def _is_pair(node) -> bool:
  """Whether a node is a dict with arrays a and b, and not holes of a partition."""
  if not (isinstance(node, dict) and {"a", "b"} <= node.keys()):
    return False
  return all(hasattr(node[name], "ndim") for name in "ab")


def _inverse(gram):
  """(gram + eps I)^-1, divided by its Frobenius norm, of gram [..., r, r]."""
  inverse = jnp.linalg.inv(gram + _EPS * jnp.eye(gram.shape[-1]))
  return inverse / jnp.linalg.norm(inverse, axis=(-2, -1), keepdims=True)
