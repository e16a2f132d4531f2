"""Sampling: temperature, top-k, top-p, min-p and a penalty on repetition."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxpeft.errors import InputError


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How the next token is drawn.

  The penalty comes first, then the temperature, then top-k, top-p and min-p, as in
  transformers.

  Attributes:
    temperature: divides the logits; 0 always takes the likeliest token.
    top_k: draws from the k likeliest tokens only; 0 draws from all.
    top_p: draws from the fewest likeliest tokens whose total probability reaches top_p;
      1 draws from all.
    min_p: draws from tokens that are at least min_p times as likely as the likeliest
      one; 0 draws from all. Source: Nguyen et al. 2024, arXiv:2407.01082.
    repetition_penalty: makes tokens of the prompt and of the answer so far less likely:
      divides their logits if these are positive, and multiplies them otherwise; 1 is
      off. Source: Keskar et al. 2019, arXiv:1909.05858.
  """

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  repetition_penalty: float = 1.0

  def __post_init__(self):
    if not 0 <= self.temperature < float("inf"):  # also rejects NaN
      raise InputError(
        f"temperature {self.temperature} is not a number, 0 or above; 0 is greedy"
      )
    if self.top_k < 0:
      raise InputError(f"top_k {self.top_k} is below 0; 0 is off")
    if not 0 < self.top_p <= 1:
      raise InputError(f"top_p {self.top_p} is not in (0, 1]; 1 is off")
    if not 0 <= self.min_p <= 1:
      raise InputError(f"min_p {self.min_p} is not in [0, 1]; 0 is off")
    if not 0 < self.repetition_penalty < float("inf"):
      raise InputError(
        f"repetition_penalty {self.repetition_penalty} is not above 0; 1 is off"
      )

  @property
  def penalizes(self) -> bool:
    """Whether drawing needs to know the tokens of the text so far."""
    return self.repetition_penalty != 1


def choose(keys, logits, sampling: Sampling, seen=None, temperature=None):
  """The next token of each row, int32[B].

  Args:
    keys: one PRNG key per row.
    logits: float32[B, V].
    sampling: how tokens are drawn.
    seen: bool[B, V], the tokens of the text so far; only a penalty needs them.
    temperature: float32[B], instead of the one of `sampling`.
  """
  if sampling.penalizes:
    weaker = jnp.where(logits > 0, 1 / sampling.repetition_penalty,
                       sampling.repetition_penalty)  # fmt: skip
    assert seen is not None
    logits = jnp.where(seen, logits * weaker, logits)
  if temperature is not None:
    cold = temperature == 0
    drawn = _draw(keys, logits / jnp.where(cold, 1, temperature)[:, None], sampling)
    return jnp.where(cold, _likeliest(logits), drawn)
  if sampling.temperature == 0:
    return _likeliest(logits)
  return _draw(keys, logits / sampling.temperature, sampling)


def seen_tokens(tokens, valid, vocab: int):
  """bool[B, V]: which tokens of the vocabulary are among int[B, T], where `valid`."""
  rows = jnp.arange(tokens.shape[0])[:, None]
  return jnp.zeros((tokens.shape[0], vocab), bool).at[rows, tokens].max(valid)


def _likeliest(logits):
  return jnp.argmax(logits, -1).astype(jnp.int32)


def _draw(keys, logits, sampling: Sampling):
  if sampling.top_k:
    k = min(sampling.top_k, logits.shape[-1])
    least = jax.lax.top_k(logits, k)[0][:, -1:]
    logits = jnp.where(logits < least, -jnp.inf, logits)
  if sampling.top_p < 1:
    ordered = jnp.sort(logits, axis=-1, descending=True)
    before = jnp.cumsum(jax.nn.softmax(ordered), -1) - jax.nn.softmax(ordered)
    kept = jnp.where(before < sampling.top_p, ordered, jnp.inf)
    logits = jnp.where(logits < kept.min(-1, keepdims=True), -jnp.inf, logits)
  if sampling.min_p:
    least = logits.max(-1, keepdims=True) + jnp.log(sampling.min_p)
    logits = jnp.where(logits < least, -jnp.inf, logits)
  return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
