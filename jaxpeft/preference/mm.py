"""Hunter's MM algorithm for Bradley-Terry and Plackett-Luce.

A step for p = exp(r) is p_i <- W_i / sum of c_n / S_nk. W_i counts the choices of i,
and the sum runs over all choices k of rankings n in which i could be chosen; S_nk is
the sum of p over what could be chosen there. Every step makes the observed choices more
likely.

Source: Hunter 2004.
"""

import functools

import jax
import jax.numpy as jnp

_CHANGE = 1e-12  # of the utilities in a step, where it stops


@functools.partial(jax.jit, static_argnames="items")
def solve(ranked, counts, items: int, steps):
  """(utilities, steps taken, last change); arguments as in `Choices` and `fit`.

  Call it in `jax.enable_x64(True)`.
  """
  there = ranked >= 0
  chosen = there & (jnp.arange(ranked.shape[1]) < there.sum(1, keepdims=True) - 1)

  def add(values):
    flat = jnp.where(there, values * counts[:, None], 0.0).reshape(-1)
    return jnp.zeros(items).at[ranked.reshape(-1)].add(flat)  # -1 adds 0 to the last

  wins = add(chosen.astype(counts.dtype))

  def step(carry):
    r, taken, _ = carry
    p = jnp.where(there, jnp.exp(r)[ranked], 0.0)
    sums = jnp.cumsum(p[:, ::-1], 1)[:, ::-1]
    chances = jnp.cumsum(jnp.where(chosen, 1 / jnp.where(chosen, sums, 1.0), 0.0), 1)
    new = jnp.log(wins / add(chances))
    new -= new.mean()
    return new, taken + 1, jnp.abs(new - r).max()

  def goes_on(carry):
    return (carry[1] < steps) & (carry[2] > _CHANGE)

  return jax.lax.while_loop(goes_on, step, (jnp.zeros(items), 0, jnp.inf))
