"""Decoding: one compiled program of prefill and a loop with a key/value cache.

Prompts are padded on the right to a bucketed length; new tokens are written to slots
behind all prompts. Axes: B rows, P prompt slots, N new slots, S = P + N.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from jaxpeft.errors import InputError
from jaxpeft.generation.sampling import Sampling, choose
from jaxpeft.parallel import sharding
from jaxpeft.transformer import decoder
from jaxpeft.transformer.attention import KV, Where
from jaxpeft.transformer.decoder import Stream, Transformer, layer_names

_UNSTACK_BYTES = 2 << 30
_BUCKETS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # then multiples of 512


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

  The tokens of a row depend on its prompt, its index and the seed, not on the batch.

  Args:
    transformer: the model.
    params: its parameters, adapted or not.
    prompts: token ids, each at least one.
    max_new_tokens: the most new tokens of a prompt.
    stop_ids: ids that end a row.
    sampling: see `Sampling`.
    seed: seed of the draws.
    batch_size: rows decoded at once; None is all.
    label: name of a progress bar on a terminal; None shows no bar.
    choose_rows: function (params, indices of the prompts in a batch) -> params of that
      batch; None uses the same params for all.
  Raises:
    InputError: an empty prompt, or more tokens than the model has positions.
  """
  lengths = [len(p) for p in prompts]
  if min(lengths, default=1) == 0:
    raise InputError(f"prompt {lengths.index(0)} has no tokens")
  limit = transformer.config.max_positions
  if lengths and max(lengths) + max_new_tokens > limit:
    raise InputError(
      f"a prompt of {max(lengths)} tokens and {max_new_tokens} new ones exceed the "
      f"model's {limit} positions; lower max_new_tokens or shorten the prompt"
    )
  transformer, params = unstack(transformer, params)
  batch_size = batch_size or max(1, len(prompts))
  keys = jax.random.split(jax.random.key(seed), max(1, len(prompts)))
  keys = np.asarray(jax.random.key_data(keys))  # the same in every process
  out = []
  starts = range(0, len(prompts), batch_size)
  hidden = None if label else True  # None: hidden unless on a terminal
  for first in tqdm.tqdm(starts, label, unit="batch", leave=False, disable=hidden):
    rows = prompts[first : first + batch_size]
    tokens = np.zeros((batch_size, bucket(max(map(len, rows)))), np.int32)
    length = np.zeros(batch_size, np.int32)  # 0 marks the rows that only fill a batch
    for i, row in enumerate(rows):
      tokens[i, : len(row)] = row
      length[i] = len(row)
    index = np.minimum(np.arange(first, first + batch_size), len(prompts) - 1)
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
    out += [new[i, : count[i]].tolist() for i in range(len(rows))]
  return out


def bucket(length: int) -> int:
  """The padded length of prompts, so that few programs are compiled."""
  return next((b for b in _BUCKETS if b >= length), -(-length // 512) * 512)


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7))
def decode(transformer, params, tokens, length, keys, max_new: int, stop_ids, sampling):
  """Prefill and decode a batch.

  Args:
    tokens: int[B, P], padded on the right.
    length: int[B]; 0 for a row to be ignored.
    keys: uint32[B, 2], the data of PRNG keys.
    max_new, stop_ids, sampling: static.
  Returns:
    (int[B, N] new tokens, int[B] how many of them precede a stop token).
  """
  b, p = tokens.shape
  keys = jax.random.wrap_key_data(keys)
  slots = jnp.arange(p + max_new)  # new token i has slot p + i
  prompt = slots < length[:, None]
  position = jnp.where(slots < p, slots, length[:, None] + slots - p)
  where = Where(position[:, :p], prompt[:, :p].astype(jnp.int32))
  hidden, kept = decoder.run(transformer, params, Stream(tokens, where), keep="kv")
  last = jnp.maximum(length - 1, 0)[:, None, None]
  hidden = jnp.take_along_axis(hidden, last, axis=1)[:, 0]
  logits = decoder.logits(transformer, params, hidden)
  room = [(0, 0), (0, 0), (0, 0), (0, max_new), (0, 0)]
  cache = jax.tree.map(lambda x: jnp.pad(x, room), kept)

  def draw(i, logits):
    own = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
    return choose(own, logits, sampling)

  def is_stop(token):
    return functools.reduce(jnp.logical_or, [token == s for s in stop_ids], False)

  def write(i, token, done, new, count):
    done = done | is_stop(token)
    return done, new.at[:, i].set(token), count + ~done

  def go_on(carry):
    i, _, done, *_ = carry
    return (i < max_new - 1) & ~done.all()

  def body(carry):
    i, token, done, cache, new, count = carry
    filled = prompt | ((slots >= p) & (slots < p + i))
    seen = Where(position, filled.astype(jnp.int32))
    here = Where((length + i)[:, None], jnp.ones((b, 1), jnp.int32))
    hidden, kept = decoder.run(
      transformer,
      params,
      Stream(token[:, None], here),
      kv=[KV(k, v, seen) for k, v in cache],
      keep="kv",
    )
    logits = decoder.logits(transformer, params, hidden[:, 0])
    token = draw(i + 1, logits)
    # No token is negative, so this adds 0. XLA does not know that, and has to update
    # the cache after all reads of it: in place, where it would otherwise copy it twice.
    slot = p + i + jnp.minimum(token.min(), 0)
    cache = jax.tree.map(
      lambda c, x: jax.lax.dynamic_update_slice_in_dim(c, x, slot, 3), cache, kept
    )
    done, new, count = write(i + 1, token, done, new, count)
    return i + 1, token, done, cache, new, count

  token, empty = draw(0, logits), jnp.zeros((b, max_new), jnp.int32)
  done, new, count = write(0, token, length == 0, empty, jnp.zeros(b, jnp.int32))
  start = 0, token, done, cache, new, count
  *_, new, count = jax.lax.while_loop(go_on, body, start)
  return sharding.replicated((new, count))


def unstack(transformer, params):
  """The same model with every layer a group of its own, unless it is large.

  A scan copies the weights of each layer out of their stack at every token; here they
  are copied once, which takes the memory of the model a second time.
  """
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
  depth = transformer.config.depth
  if size > _UNSTACK_BYTES or len(layer_names(params)) == depth:
    return transformer, params
  return transformer.clone(groups=(1,) * depth, remat="none"), _cut(params)


@jax.jit
def _cut(params):
  names = layer_names(params)
  depths = [jax.tree.leaves(params[name])[0].shape[0] for name in names]
  layers = [
    jax.tree.map(lambda x, i=i: x[i : i + 1], params[name])
    for name, depth in zip(names, depths, strict=True)
    for i in range(depth)
  ]
  rest = {name: x for name, x in params.items() if name not in names}
  return rest | {f"layers_{i}": layer for i, layer in enumerate(layers)}
