"""Decoding: one compiled program for prefill and a loop with a key/value cache.

Prompts are padded on the right to one of a few lengths, so that few programs are
compiled. New tokens are written to the cache slots after the padded prompts.
Axes: B rows, P prompt slots, N new slots, S = P + N slots.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft import console
from jaxpeft.errors import InputError
from jaxpeft.generation import batch, memory
from jaxpeft.generation.batch import bucket as bucket
from jaxpeft.generation.sampling import Sampling, choose, seen_tokens
from jaxpeft.parallel import sharding
from jaxpeft.transformer import decoder
from jaxpeft.transformer.attention import KV, Where
from jaxpeft.transformer.decoder import Stream, Transformer, layer_names
from jaxpeft.transformer.rope import needs_length

_UNSTACK_BYTES = 2 << 30  # `unstack` copies no larger model


def generate(
  transformer: Transformer,
  params,
  prompts: list[list[int]],
  max_new_tokens: int,
  stop_ids: tuple[int, ...] = (),
  sampling: Sampling = Sampling(),
  seed: int = 0,
  batch_size: int | None = None,
  label: str | None = None,
  choose_rows=None,
) -> list[list[int]]:
  """New tokens for each prompt, up to but excluding the first stop token.

  The tokens of a row depend on its prompt, its index and the seed, but not on the other
  rows or the batch size.

  Args:
    transformer: the model.
    params: its parameters, adapted or not.
    prompts: lists of token ids, none of them empty.
    max_new_tokens: most new tokens for a prompt.
    stop_ids: token ids that end a row.
    sampling: how each token is drawn.
    seed: seed of the draws.
    batch_size: most rows decoded at once; None or 0 decodes as many as memory holds.
      Fewer are decoded if memory does not hold so many.
    label: what is said of the progress; None says nothing.
    choose_rows: function (params, indices of the prompts in a batch) -> params for that
      batch; None uses the same params for every batch.
  Raises:
    InputError: a prompt is empty, or needs more positions than the model has.
  """
  lengths = check(transformer, prompts, max_new_tokens, batch_size)
  transformer, params = unstack(transformer, params)
  batches = batch.plan(
    lengths,
    batch_size,
    memory.budget(),
    lambda slots: memory.row_bytes(transformer, slots, max_new_tokens),
    sharding.cut("batch"),
  )
  keys = jax.random.split(jax.random.key(seed), max(1, len(prompts)))
  keys = np.asarray(jax.random.key_data(keys))  # the same in every process
  out = [[] for _ in prompts]
  for some in console.progress(batches, label, len(batches), "batches"):
    tokens, length = padded([prompts[i] for i in some.rows], some.size, some.slots)
    index = np.array((some.rows + some.rows[-1:] * some.size)[: some.size])
    new, count = decode(
      transformer,
      params if choose_rows is None else choose_rows(params, index),
      tokens,
      length,
      keys[index],
      max_new_tokens,
      tuple(stop_ids),
      sampling,
    )
    new, count = np.asarray(new), np.asarray(count)
    for i, row, n in zip(some.rows, new, count, strict=False):
      out[i] = row[:n].tolist()
  return out


def check(transformer, prompts, new: int, batch_size: int | None = None) -> list[int]:
  """The number of tokens of each prompt.

  Raises:
    InputError: a prompt is empty, has ids that are not in the vocabulary, or needs with
      `new` more tokens more positions than the model has; or a number is too small.
  """
  if batch_size is not None and batch_size < 0:
    raise InputError(
      f"batch_size {batch_size} is below 1; None or 0 is as many as memory holds"
    )
  if new < 1:
    raise InputError(f"max_new_tokens {new} is below 1")
  c, lengths = transformer.config, check_tokens(transformer, prompts)
  if lengths and max(lengths) + new > c.max_positions:
    raise InputError(
      f"a prompt of {max(lengths)} tokens and {new} new ones exceed the "
      f"model's {c.max_positions} positions; lower max_new_tokens or shorten the prompt"
    )
  return lengths


def check_tokens(transformer, prompts) -> list[int]:
  """The number of tokens of each prompt.

  Raises:
    InputError: a prompt is empty, or has ids that are not in the vocabulary.
  """
  lengths, c = [len(p) for p in prompts], transformer.config
  if min(lengths, default=1) == 0:
    raise InputError(f"prompt {lengths.index(0)} has no tokens")
  for i, prompt in enumerate(prompts):
    if not 0 <= min(prompt) <= max(prompt) < c.vocab_size:
      bad = next(t for t in prompt if not 0 <= t < c.vocab_size)
      raise InputError(
        f"prompt {i} has the token {bad}; the model's ids are 0 to {c.vocab_size - 1}"
      )
  return lengths


def padded(rows: list[list[int]], size: int, slots: int):
  """(tokens int32[size, slots], lengths int32[size]) of rows, padded on the right.

  The length is 0 for rows that only fill up the batch.
  """
  tokens, length = np.zeros((size, slots), np.int32), np.zeros(size, np.int32)
  for i, row in enumerate(rows):
    tokens[i, : len(row)] = row
    length[i] = len(row)
  return tokens, length


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7))
def decode(transformer, params, tokens, length, keys, max_new: int, stop_ids, sampling):
  """The new tokens of one batch: a prefill, then a loop of one token per row.

  Args:
    transformer: the model.
    params: its parameters.
    tokens: int[B, P], prompts padded on the right.
    length: int[B], prompt lengths; rows of length 0 are ignored.
    keys: uint32[B, 2], the raw data of PRNG keys.
    max_new: N.
    stop_ids, sampling: as in `generate`.
  Returns:
    (int[B, N] new tokens, int[B] number of them before the first stop token).
  """
  b, p = tokens.shape
  keys = jax.random.wrap_key_data(keys)
  slots = jnp.arange(p + max_new)  # new token i goes to slot p + i
  prompt = slots < length[:, None]
  position = jnp.where(slots < p, slots, length[:, None] + slots - p)
  where = Where(position[:, :p], prompt[:, :p].astype(jnp.int32))
  end = length + max_new if needs_length(transformer.config) else None
  prompts = Stream(tokens, where, length=end)
  hidden, kept = decoder.run(transformer, params, prompts, keep="kv")
  last = jnp.maximum(length - 1, 0)[:, None, None]
  hidden = jnp.take_along_axis(hidden, last, axis=1)[:, 0]
  logits = decoder.logits(transformer, params, hidden)
  room = [(0, 0), (0, 0), (0, 0), (0, max_new), (0, 0)]
  cache = jax.tree.map(lambda x: jnp.pad(x, room), kept)

  def draw(i, logits, seen):
    own = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
    token = choose(own, logits, sampling, seen)
    return token, seen if seen is None else seen.at[jnp.arange(b), token].set(True)

  def is_stop(token):
    return functools.reduce(jnp.logical_or, [token == s for s in stop_ids], False)

  def write(i, token, done, new, count):
    done = done | is_stop(token)
    return done, new.at[:, i].set(token), count + ~done

  def go_on(carry):
    i, _, done, *_ = carry
    return (i < max_new - 1) & ~done.all()

  def body(carry):
    i, token, done, cache, new, count, mask = carry
    filled = prompt | ((slots >= p) & (slots < p + i))
    seen = Where(position, filled.astype(jnp.int32))
    here = Where((length + i)[:, None], jnp.ones((b, 1), jnp.int32))
    hidden, kept = decoder.run(
      transformer,
      params,
      Stream(token[:, None], here, length=end),
      kv=[KV(k, v, seen) for k, v in cache],
      keep="kv",
    )
    logits = decoder.logits(transformer, params, hidden[:, 0])
    token, mask = draw(i + 1, logits, mask)
    # No token is negative, so the minimum is 0. XLA does not know that, so the slot
    # depends on the new token, and XLA must update the cache after the layers have read
    # it. It can then update in place; otherwise it copies the cache twice.
    slot = p + i + jnp.minimum(token.min(), 0)
    cache = jax.tree.map(
      lambda c, x: jax.lax.dynamic_update_slice_in_dim(c, x, slot, 3), cache, kept
    )
    done, new, count = write(i + 1, token, done, new, count)
    return i + 1, token, done, cache, new, count, mask

  mask = None
  if sampling.penalizes:
    mask = seen_tokens(tokens, prompt[:, :p], transformer.config.vocab_size)
  token, mask = draw(0, logits, mask)
  empty = jnp.zeros((b, max_new), jnp.int32)
  done, new, count = write(0, token, length == 0, empty, jnp.zeros(b, jnp.int32))
  start = 0, token, done, cache, new, count, mask
  *_, new, count, _ = jax.lax.while_loop(go_on, body, start)
  return sharding.replicated((new, count))


def unstack(transformer, params):
  """(transformer, params) with one layer per group, for models up to 2 GiB.

  A scan over stacked layers copies each layer's weights out of the stack at every
  token. Unstacking copies them once instead, but needs memory for a second copy of the
  model; a larger model is returned as it is.
  """
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
  depth = transformer.config.depth
  if size > _UNSTACK_BYTES or len(layer_names(params)) == depth:
    return transformer, params
  return transformer.clone(groups=(1,) * depth, remat="none"), _cut(params)


@jax.jit
def _cut(params):
  """`params` with each stack of layers split into stacks of one layer."""
  names = layer_names(params)
  depths = [jax.tree.leaves(params[name]["attn"])[0].shape[0] for name in names]

  def cut(i, depth):
    """Layer i of a leaf, which has one entry per layer, or one per layer and expert."""
    return lambda x: x[i * (x.shape[0] // depth) : (i + 1) * (x.shape[0] // depth)]

  layers = [
    jax.tree.map(cut(i, depth), params[name])
    for name, depth in zip(names, depths, strict=True)
    for i in range(depth)
  ]
  rest = {name: x for name, x in params.items() if name not in names}
  return rest | {f"layers_{i}": layer for i, layer in enumerate(layers)}
