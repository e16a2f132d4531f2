"""Scaled gradients for low-rank factors, to go before any optimizer.

Axes: i in, o out, r rank.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxpeft.errors import InputError

_EPS = 1e-6


class ScaledState(NamedTuple):
  """Steps taken."""

  count: jax.Array


def scaled_gd() -> optax.GradientTransformation:
  """Each factor's gradient times the inverse Gram matrix of the other: NoRA+.

  g_a P / |P| with P = (b b' + eps)^-1, not at the first step, where b is zero; and
  Q g_b / |Q| with Q = (a' a + eps)^-1. Pairs a [in, r], b [r, out] in one dict are
  scaled, also stacked ones; other leaves pass. Source: arXiv:2410.18965 and its code;
  Tong et al. 2021.

  Raises:
    InputError: from `init`, where nothing has such factors.
  """

  def init(params):
    if not any(_is_pair(x) for x in jax.tree.leaves(params, is_leaf=_is_pair)):
      raise InputError(
        "optim.precondition scaled_gd needs low-rank factors a and b, which none of "
        'the adapters has; use it with LoRA or NoRA, or set optim.precondition=""'
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

  return optax.GradientTransformation(init, update)


def _is_pair(node) -> bool:
  """Whether a node is a theta with both factors (holes of a partition are none)."""
  if not (isinstance(node, dict) and {"a", "b"} <= node.keys()):
    return False
  return all(hasattr(node[name], "ndim") for name in "ab")


def _inverse(gram):
  """(gram + eps)^-1 over its Frobenius norm, of [..., r, r]."""
  inverse = jnp.linalg.inv(gram + _EPS * jnp.eye(gram.shape[-1]))
  return inverse / jnp.linalg.norm(inverse, axis=(-2, -1), keepdims=True)
