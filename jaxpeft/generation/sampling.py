"""Sampling: temperature, top-k and top-p."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxpeft.errors import InputError


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How the next token is drawn.

  Attributes:
    temperature: divides the logits; 0 always takes the likeliest token.
    top_k: draws from the k likeliest tokens only; 0 draws from all.
    top_p: draws from the fewest likeliest tokens whose total probability reaches top_p;
      1 draws from all.
  """

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0

  def __post_init__(self):
    if not self.temperature >= 0:  # also rejects NaN
      raise InputError(
        f"temperature {self.temperature} is not a number, 0 or above; 0 is greedy"
      )
    if self.top_k < 0:
      raise InputError(f"top_k {self.top_k} is below 0; 0 is off")
    if not 0 < self.top_p <= 1:
      raise InputError(f"top_p {self.top_p} is not in (0, 1]; 1 is off")


def choose(keys, logits, sampling: Sampling):
  """Tokens int32[B], drawn from logits float32[B, V] with one PRNG key per row."""
  if sampling.temperature == 0:
    return jnp.argmax(logits, -1).astype(jnp.int32)
  logits = logits / sampling.temperature
  if sampling.top_k:
    k = min(sampling.top_k, logits.shape[-1])
    least = jax.lax.top_k(logits, k)[0][:, -1:]
    logits = jnp.where(logits < least, -jnp.inf, logits)
  if sampling.top_p < 1:
    ordered = jnp.sort(logits, axis=-1, descending=True)
    before = jnp.cumsum(jax.nn.softmax(ordered), -1) - jax.nn.softmax(ordered)
    kept = jnp.where(before < sampling.top_p, ordered, jnp.inf)
    logits = jnp.where(logits < kept.min(-1, keepdims=True), -jnp.inf, logits)
  return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
