"""Prompt lookup: guesses the next tokens from where the last ones occurred before."""

import jax.numpy as jnp


def lookup(text, filled, count: int):
  """int32[R, count]: what followed the last two tokens where they occurred before.

  Source: "prompt lookup decoding", Saxena 2023. A row in which they did not occur
  guesses the tokens at its beginning.

  Args:
    text: int32[R, S].
    filled: int32[R], the place of the last token.
    count: number of tokens to guess.
  """
  if not count:
    return text[:, :0]
  places = jnp.arange(text.shape[1])
  last = jnp.take_along_axis(text, filled[:, None], 1)
  previous = jnp.take_along_axis(text, jnp.maximum(filled - 1, 0)[:, None], 1)
  same = (text == last) & (jnp.roll(text, 1, 1) == previous)
  same &= (places > 0) & (places < filled[:, None])
  at = jnp.max(jnp.where(same, places, -1), 1)
  return jnp.take_along_axis(text, at[:, None] + 1 + jnp.arange(count), 1)
