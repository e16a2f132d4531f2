"""The compiled programs of `engine`: a pool of rows that decode side by side.

Each row of the pool holds one text: its keys and values in the slots 0, 1, ..., which
are also the positions. `admit` reads prompts and puts them into rows; `go_on` decodes
all rows for some steps. A row that has ended is free for another prompt, so that rows
of different ages decode in one program.
Axes: R rows, S slots of a row, D draft tokens of a step, B prompts read at once, P
slots of a prompt, C rows that are filled, V vocabulary.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpeft.generation import lookup
from jaxpeft.generation.sampling import choose, seen_tokens
from jaxpeft.parallel import sharding
from jaxpeft.transformer import decoder
from jaxpeft.transformer.attention import KV, Where
from jaxpeft.transformer.decoder import Stream
from jaxpeft.transformer.rope import needs_length


class Pool(NamedTuple):
  """The state of all rows. A row's last token has no keys and values yet."""

  cache: Any  # keys and values of each group of layers, [layers, R, K, S, N]
  text: jax.Array  # int32[R, S]: prompt and answer
  logprob: jax.Array  # float32[R, S], of each token of the answer, in nats
  filled: jax.Array  # int32[R], tokens whose keys and values are there
  drawn: jax.Array  # int32[R], tokens of the answer
  limit: jax.Array  # int32[R], most tokens of the answer
  active: jax.Array  # bool[R], whether the row's answer goes on
  key: jax.Array  # uint32[R, 2], raw data of a PRNG key
  temperature: jax.Array  # float32[R]
  end: jax.Array  # int32[R], which row of `stops` ends the answer
  seen: jax.Array | None  # bool[R, V], tokens of the text; None without a penalty


class Prompts(NamedTuple):
  """Prompts to read, and the rows that take them; all are NumPy arrays."""

  tokens: Any  # int32[B, P], what comes after the shared prefix, padded on the right
  length: Any  # int32[B], without the prefix
  text: Any  # int32[B, S], the whole prompts
  source: Any  # int32[C], the prompt of each row
  row: Any  # int32[C]; the first `count` of them are filled
  count: Any  # int32[]
  limit: Any  # int32[C], most new tokens
  key: Any  # uint32[C, 2]
  temperature: Any  # float32[C]
  end: Any  # int32[C]


class Prefix(NamedTuple):
  """The beginning that all prompts share, which was read before."""

  kv: Any  # keys and values of each group of layers, [layers, 1, K, P, N]
  length: Any  # int32[], at most P


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4))
def empty(transformer, params, rows: int, slots: int, penalizes: bool):
  """A pool of free rows, for a transformer and its parameters."""
  one = jnp.zeros((1, 1), jnp.int32)
  stream = Stream(one, Where(one, one), length=one[0] + 1)
  kept = jax.eval_shape(
    lambda p: decoder.run(transformer, p, stream, keep="kv")[1], params
  )

  def zeros(x):
    shape = x.shape[0], rows, x.shape[2], slots, x.shape[4]
    return sharding.constrain(
      jnp.zeros(shape, x.dtype), None, "batch", "heads", None, None
    )

  cache = jax.tree.map(zeros, kept)
  zero = jnp.zeros(rows, jnp.int32)
  return Pool(
    cache, jnp.zeros((rows, slots), jnp.int32), jnp.zeros((rows, slots)), zero, zero,
    zero, zero > 0, jnp.zeros((rows, 2), jnp.uint32), jnp.zeros(rows), zero,
    jnp.zeros((rows, transformer.config.vocab_size), bool) if penalizes else None,
  )  # fmt: skip


@functools.partial(jax.jit, static_argnums=0)
def read_prefix(transformer, params, tokens, length) -> Prefix:
  """Reads a prefix int32[1, P]; its tokens from `length` on are padding."""
  where = Where(*_from(jnp.zeros(1, jnp.int32), length[None], tokens.shape[1]))
  _, kept = decoder.run(transformer, params, Stream(tokens, where), keep="kv")
  return Prefix(kept, length)


@functools.partial(jax.jit, static_argnums=(0, 6, 7), donate_argnums=2)
def admit(
  transformer, params, pool: Pool, prompts: Prompts, prefix: Prefix | None, stops,
  sampling, greedy: bool,
) -> Pool:  # fmt: skip
  """Reads prompts, puts them into rows, and draws each row's first token.

  Args:
    transformer, params: the model that reads; its groups of layers may differ from the
      pool's.
    pool: whose rows `prompts.row` are free.
    prompts: see `Prompts`.
    prefix: their shared beginning, or None.
    stops: bool[ends, V], tokens that end an answer.
    sampling: how tokens are drawn; each row has a temperature of its own.
    greedy: whether all temperatures are 0.
  """
  b, p = prompts.tokens.shape
  at = 0 if prefix is None else prefix.length
  begin = jnp.full(b, at, jnp.int32)
  where = Where(*_from(begin, prompts.length, p))
  length = None
  if needs_length(transformer.config):  # copies of a prompt have one limit
    limit = jnp.zeros(b, jnp.int32).at[prompts.source].max(prompts.limit)
    length = prompts.length + limit
  kv, before = None, prefix and prefix.kv
  if prefix is not None:
    slots = prefix.kv[0][0].shape[3]
    seen = Where(*_from(jnp.zeros(b, jnp.int32), begin, slots))

    def copies(x):
      return jnp.broadcast_to(x, (x.shape[0], b, *x.shape[2:]))

    kv = [KV(copies(k), copies(v), seen) for k, v in prefix.kv]
  hidden, kept = decoder.run(
    transformer, params, Stream(prompts.tokens, where, length=length), kv=kv, keep="kv"
  )
  depths = [x[0].shape[0] for x in pool.cache]
  kept = regrouped(kept, depths)
  before = regrouped(before, depths) if before else None

  def put(i, cache):
    row, source = prompts.row[i], prompts.source[i]
    if before is not None:
      cache = jax.tree.map(lambda c, x: _put(c, x, row, 0), cache, before)
    one = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, source, 1, 1), kept)
    return jax.tree.map(lambda c, x: _put(c, x, row, at), cache, one)

  cache = jax.lax.fori_loop(0, prompts.count, put, pool.cache)
  last = jnp.maximum(prompts.length - 1, 0)[:, None, None]
  logits = decoder.logits(
    transformer, params, jnp.take_along_axis(hidden, last, axis=1)[:, 0]
  )[prompts.source]
  whole = (at + prompts.length)[prompts.source]
  text = prompts.text[prompts.source]
  mask = None
  if pool.seen is not None:
    mask = seen_tokens(text, jnp.arange(text.shape[1]) < whole[:, None],
                       logits.shape[-1])  # fmt: skip
  token, logp = _draw(
    prompts.key, jnp.zeros_like(whole), logits, sampling, greedy, mask,
    prompts.temperature,
  )  # fmt: skip
  # Rows past `count` go nowhere.
  real = jnp.arange(len(prompts.row)) < prompts.count
  row = jnp.where(real, prompts.row, pool.text.shape[0])
  here = jnp.arange(len(row))
  text = text.at[here, whole].set(token)
  logps = jnp.zeros(text.shape).at[here, whole].set(logp)
  if mask is not None:
    mask = mask.at[here, token].set(True)
  goes_on = ~stops[prompts.end, token] & (prompts.limit > 1)
  new = Pool(
    None, text, logps, whole, jnp.ones_like(whole), prompts.limit, goes_on, prompts.key,
    prompts.temperature, prompts.end, mask,
  )  # fmt: skip
  put_all = lambda old, new: old.at[row].set(new, mode="drop")  # noqa: E731
  return jax.tree.map(put_all, pool._replace(cache=None), new)._replace(cache=cache)


@functools.partial(jax.jit, static_argnums=(0, 6, 7, 8, 9), donate_argnums=2)
def go_on(
  transformer, params, pool: Pool, keep, enough, stops, sampling, greedy: bool,
  drafts: int, most: int,
):  # fmt: skip
  """(pool, (text, logprob, filled, drawn, active)) after at most `most` steps.

  Args:
    transformer, params: the model, with the pool's groups of layers.
    pool: its rows.
    keep: bool[R]; other rows end now.
    enough: int32[]; returns as soon as so many rows have ended.
    stops, sampling, greedy: as in `admit`.
    drafts: D, tokens that are guessed in each step; see `lookup`. They change how many
      steps it takes, and not the tokens.
    most: most steps.
  """
  rows = jnp.arange(pool.text.shape[0])
  steps = jnp.arange(drafts + 1)
  slots = jnp.arange(jax.tree.leaves(pool.cache)[0].shape[3])

  def unfinished(carry):
    i, pool = carry
    ended = jnp.sum(~pool.active)
    return (i < most) & pool.active.any() & (ended < enough)

  def body(carry):
    i, pool = carry
    place = pool.filled[:, None] + steps  # [R, D + 1]
    guessed = lookup.lookup(pool.text, pool.filled, drafts)
    last = jnp.take_along_axis(pool.text, pool.filled[:, None], 1)
    tokens = jnp.concatenate([last, guessed], 1)
    seen = Where(
      jnp.broadcast_to(slots, (len(rows), len(slots))),
      (slots < pool.filled[:, None]).astype(jnp.int32),
    )
    end = None
    if needs_length(transformer.config):
      end = pool.filled + 1 - pool.drawn + pool.limit
    hidden, kept = decoder.run(
      transformer,
      params,
      Stream(tokens, Where(place, jnp.ones_like(place)), length=end),
      kv=[KV(k, v, seen) for k, v in pool.cache],
      keep="kv",
    )
    logits = decoder.logits(transformer, params, hidden)
    mask, chosen, logps = pool.seen, [], []
    for j in range(drafts + 1):
      token, logp = _draw(
        pool.key, pool.drawn + j, logits[:, j], sampling, greedy, mask, pool.temperature
      )
      chosen.append(token)
      logps.append(logp)
      if mask is not None and j < drafts:
        mask = mask.at[rows, token].set(True)
    chosen, logps = jnp.stack(chosen, 1), jnp.stack(logps, 1)
    # Token j + 1 counts if all guesses up to j were right, and no token before ends.
    stop = stops[pool.end[:, None], chosen]
    right = (chosen[:, :-1] == guessed) & ~stop[:, :-1]
    count = 1 + jnp.cumprod(right, 1).sum(1)
    count = jnp.minimum(count, pool.limit - pool.drawn) * pool.active
    ends = jnp.take_along_axis(stop, jnp.maximum(count - 1, 0)[:, None], 1)[:, 0]
    # The minimum is 0. It makes the slots depend on the new tokens, so that XLA updates
    # the cache in place, after the layers have read it; see `decode.decode`.
    at = place + jnp.minimum(chosen.min(), 0)
    cache = jax.tree.map(
      lambda c, x: c.at[:, rows[:, None], :, at].set(jnp.moveaxis(x, (1, 3), (0, 1))),
      pool.cache,
      kept,
    )
    drawn = pool.drawn + count
    mask = pool.seen
    if mask is not None:
      for j in range(drafts + 1):
        mask = mask.at[rows, chosen[:, j]].max(j < count)
    return i + 1, pool._replace(
      cache=cache,
      text=pool.text.at[rows[:, None], place + 1].set(chosen),
      logprob=pool.logprob.at[rows[:, None], place + 1].set(logps),
      filled=pool.filled + count,
      drawn=drawn,
      active=pool.active & ~ends & (drawn < pool.limit),
      seen=mask,
    )

  pool = pool._replace(active=pool.active & keep)
  _, pool = jax.lax.while_loop(unfinished, body, (0, pool))
  return pool, sharding.replicated(
    (pool.text, pool.logprob, pool.filled, pool.drawn, pool.active)
  )


def regrouped(kv, depths):
  """Keys and values [(k, v)] of groups of layers, as those of other groups."""
  groups = [x[0].shape[0] for x in kv]
  if groups == list(depths):
    return kv
  ends = [sum(depths[: i + 1]) for i in range(len(depths) - 1)]
  pairs = [jnp.split(jnp.concatenate(x), ends) for x in zip(*kv, strict=True)]
  return list(zip(*pairs, strict=True))


def _from(begin, length, slots: int):
  """(position, segment) int32[B, P] of `length` tokens from position `begin` on."""
  own = jnp.arange(slots)
  return begin[:, None] + own, (own < length[:, None]).astype(jnp.int32)


def _put(cache, x, row, slot):
  """The cache with keys or values [layers, 1, K, P, N] in a row, from a slot on."""
  return jax.lax.dynamic_update_slice(cache, x, (0, row, 0, slot, 0))


def _draw(keys, number, logits, sampling, greedy: bool, seen, temperature):
  """(tokens int32[B], log-probabilities float32[B] of the model's distribution)."""
  keys = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(keys), number)
  token = choose(keys, logits, sampling, seen, None if greedy else temperature)
  logp = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], 1)[:, 0]
  return token, logp
