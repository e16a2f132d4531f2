"""Log-likelihoods of given completions: one prefill for all completions of a prompt.

Axes: B prompts, P prompt slots, L completions of a prompt, C tokens of a completion.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft import console
from jaxpeft.generation import batch, decode, memory
from jaxpeft.parallel import sharding
from jaxpeft.transformer import decoder
from jaxpeft.transformer.attention import KV, Where
from jaxpeft.transformer.decoder import Stream, Transformer
from jaxpeft.transformer.rope import needs_length


def score(
  transformer: Transformer,
  params,
  prompts: list[list[int]],
  completions: list[list[list[int]]],
  batch_size: int | None = None,
  label: str | None = None,
) -> list[list[float]]:
  """The log-likelihood of every completion of every prompt, in nats.

  It is the sum over the completion's tokens; an end token counts only if it is given.

  Args:
    transformer, params: the model.
    prompts: lists of token ids, none of them empty.
    completions: for each prompt, lists of token ids, none of them empty.
    batch_size, label: as in `decode.generate`.
  Raises:
    InputError: as `decode.check`; the completions count as new tokens.
  """
  if not any(completions):
    return [[] for _ in prompts]
  flat = [tokens for some in completions for tokens in some]
  c = max(map(len, flat))
  lengths = decode.check(transformer, prompts, c, batch_size)
  decode.check(transformer, flat, 1)
  transformer, params = decode.unstack(transformer, params)
  most = max(map(len, completions))
  batches = batch.plan(
    lengths,
    batch_size,
    memory.budget(),
    lambda slots: memory.row_bytes(transformer, slots, c, c),
    sharding.cut("batch"),
  )
  out: list[list[float]] = [[] for _ in prompts]
  for some in console.progress(batches, label, len(batches), "batches"):
    tokens, length = decode.padded(
      [prompts[i] for i in some.rows], some.size, some.slots
    )
    new, count = np.zeros((some.size, most, c), np.int32), np.zeros((some.size, most))
    for row, i in enumerate(some.rows):
      own = completions[i]
      new[row, : len(own)], count[row, : len(own)] = decode.padded(own, len(own), c)
    got = np.asarray(logprobs(transformer, params, tokens, length, new, count))
    for row, i in enumerate(some.rows):
      out[i] = got[row, : len(completions[i])].tolist()
  return out


@functools.partial(jax.jit, static_argnums=0)
def logprobs(transformer, params, tokens, length, new, count):
  """float32[B, L], the log-likelihood of each completion after its prompt.

  Args:
    transformer, params: the model.
    tokens: int[B, P], prompts padded on the right.
    length: int[B], prompt lengths; rows of length 0 are ignored.
    new: int[B, L, C], completions padded on the right.
    count: [B, L], their lengths.
  """
  b, p = tokens.shape
  c = new.shape[2]
  slots = jnp.arange(p)
  seen = Where(
    jnp.broadcast_to(slots, (b, p)), (slots < length[:, None]).astype(jnp.int32)
  )
  end = length + count.max(1).astype(int) if needs_length(transformer.config) else None
  stream = Stream(tokens, seen, length=end)
  hidden, kept = decoder.run(transformer, params, stream, keep="kv")
  last = jnp.maximum(length - 1, 0)[:, None, None]
  first = _log_softmax(transformer, params, jnp.take_along_axis(hidden, last, 1))
  position = length[:, None] + jnp.arange(c - 1)

  def one(given):
    """float32[B], of one completion of each prompt."""
    tokens, count = given  # [B, C], [B]
    steps = jnp.arange(c)
    parts = [_pick(first, tokens[:, :1])]
    if c > 1:
      here = Where(position, (steps[:-1] < count[:, None]).astype(jnp.int32))
      hidden, _ = decoder.run(
        transformer,
        params,
        Stream(tokens[:, :-1], here, length=end),
        kv=[KV(k, v, seen) for k, v in kept],
      )
      parts.append(_pick(_log_softmax(transformer, params, hidden), tokens[:, 1:]))
    return jnp.sum(jnp.concatenate(parts, 1) * (steps < count[:, None]), 1)

  # A loop, so that the logits of one completion of each prompt exist at a time.
  found = jax.lax.map(one, (jnp.moveaxis(new, 1, 0), count.T))
  return sharding.replicated(found.T)


def _log_softmax(transformer, params, hidden):
  return jax.nn.log_softmax(decoder.logits(transformer, params, hidden))


def _pick(logp, tokens):
  """float32[B, T]: of logp [B, T, V], the entries of tokens int[B, T]."""
  return jnp.take_along_axis(logp, tokens[..., None], -1)[..., 0]
