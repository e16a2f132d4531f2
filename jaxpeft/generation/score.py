"""Log-likelihoods of given completions: one prefill for all completions of a prompt.

Axes: B prompts, P prompt slots, L completions of a prompt, C tokens of a completion.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft import console
from jaxpeft.errors import InputError
from jaxpeft.generation import batch, decode, memory
from jaxpeft.parallel import sharding
from jaxpeft.transformer import chunking, decoder
from jaxpeft.transformer.attention import KV, Where
from jaxpeft.transformer.decoder import Stream, Transformer
from jaxpeft.transformer.rope import needs_length

_NUMBERS = 2**23  # most logits held at once: 32 MiB in float32


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

  Args, Raises:
    as in `with_greedy`.
  """
  found = with_greedy(transformer, params, prompts, completions, batch_size, label)
  return [[logprob for logprob, _ in some] for some in found]


def with_greedy(
  transformer: Transformer,
  params,
  prompts: list[list[int]],
  completions: list[list[list[int]]],
  batch_size: int | None = None,
  label: str | None = None,
) -> list[list[tuple[float, bool]]]:
  """For every completion of every prompt its log-likelihood, and if greedy gives it.

  Args:
    transformer, params: the model.
    prompts: lists of token ids, none of them empty.
    completions: for each prompt, lists of token ids, none of them empty.
    batch_size, label: as in `decode.generate`.
  Raises:
    InputError: as `decode.check`; the completions but for their last tokens, which the
      model need not read, count as new tokens.
  """
  if not any(completions):
    return [[] for _ in prompts]
  flat = [tokens for some in completions for tokens in some]
  c = max(map(len, flat))
  decode.check(transformer, [], 1, batch_size)
  decode.check_tokens(transformer, flat)
  lengths = decode.check_tokens(transformer, prompts)
  for length, some in zip(lengths, completions, strict=True):
    new, limit = max(map(len, some), default=1), transformer.config.max_positions
    if length + new - 1 > limit:
      raise InputError(
        f"a prompt of {length} tokens and a completion of {new} exceed the model's "
        f"{limit} positions; shorten them"
      )
  vocab = transformer.config.vocab_size
  transformer, params = decode.unstack(transformer, params)
  most, logits = max(map(len, completions)), min(c, 1 + _NUMBERS // vocab)
  batches = batch.plan(
    lengths,
    batch_size,
    memory.budget(),
    lambda slots: memory.row_bytes(transformer, slots, c, logits),
    sharding.cut("batch"),
  )
  out: list[list[tuple[float, bool]]] = [[] for _ in prompts]
  for some in console.progress(batches, label, len(batches), "batches"):
    tokens, length = decode.padded(
      [prompts[i] for i in some.rows], some.size, some.slots
    )
    new, count = np.zeros((some.size, most, c), np.int32), np.zeros((some.size, most))
    for row, i in enumerate(some.rows):
      own = completions[i]
      new[row, : len(own)], count[row, : len(own)] = decode.padded(own, len(own), c)
    got = logprobs(transformer, params, tokens, length, new, count)
    sums, greedy = (np.asarray(x).tolist() for x in got)
    for row, i in enumerate(some.rows):
      n = len(completions[i])
      out[i] = list(zip(sums[row][:n], greedy[row][:n], strict=True))
  return out


@functools.partial(jax.jit, static_argnums=0)
def logprobs(transformer, params, tokens, length, new, count):
  """(float32[B, L], bool[B, L]) of each completion after its prompt.

  They are the log-likelihood, and whether each token is the likeliest one.

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
  first = jnp.take_along_axis(hidden, last, 1)
  position = length[:, None] + jnp.arange(c - 1)

  def one(given):
    """(float32[B], bool[B]), of one completion of each prompt."""
    tokens, count = given  # [B, C], [B]
    steps = jnp.arange(c)
    parts = [_scores(transformer, params, first, tokens[:, :1])]
    if c > 1:
      here = Where(position, (steps[:-1] < count[:, None]).astype(jnp.int32))
      hidden, _ = decoder.run(
        transformer,
        params,
        Stream(tokens[:, :-1], here, length=end),
        kv=[KV(k, v, seen) for k, v in kept],
      )
      parts.append(_scores(transformer, params, hidden, tokens[:, 1:]))
    logp, best = jnp.moveaxis(jnp.concatenate(parts, 1), -1, 0)
    own = steps < count[:, None]
    return jnp.sum(logp * own, 1), jnp.all((best > 0) | ~own, 1)

  # A loop, so that the logits of one completion of each prompt exist at a time.
  sums, greedy = jax.lax.map(one, (jnp.moveaxis(new, 1, 0), count.T))
  return sharding.replicated((sums.T, greedy.T))


def _scores(transformer, params, hidden, tokens):
  """float32[B, T, 2]: log-probabilities of tokens int[B, T], and if each is likeliest.

  The logits of long completions exist for some tokens at a time.
  """

  def some(hidden, tokens):
    logp = jax.nn.log_softmax(decoder.logits(transformer, params, hidden))
    picked = jnp.take_along_axis(logp, tokens[..., None], -1)[..., 0]
    return jnp.stack([picked, jnp.argmax(logp, -1) == tokens], -1)

  numbers = tokens.size * transformer.config.vocab_size / sharding.cut("batch")
  return chunking.over_tokens(some, math.ceil(numbers / _NUMBERS), hidden, tokens)
