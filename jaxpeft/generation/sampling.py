"""How the next token is drawn."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxpeft.errors import InputError


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How the next token is drawn.

  Attributes:
    temperature: what logits are divided by; 0 takes the likeliest token.
    top_k: draws among the k likeliest tokens only; 0 is all.
    top_p: draws among the likeliest tokens that together reach this probability only.
  """

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0

  def __post_init__(self):
    if not self.temperature >= 0:  # so is NaN
      raise InputError(f"temperature {self.temperature} is not at least 0")
    if self.top_k < 0:
      raise InputError(f"top_k {self.top_k} is negative; 0 is off")
    if not 0 < self.top_p <= 1:
      raise InputError(f"top_p {self.top_p} is not in (0, 1]")


def choose(keys, logits, sampling: Sampling):
  """int32[B] tokens drawn from logits float32[B, V], with one key per row."""
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
