"""Streaming: the tokens of one text as they come, and text of them that is complete.

A `Session` keeps the keys and values of the last text, so that a conversation which
goes on reads only what is new. New tokens are computed in chunks by one compiled
program, from unstacked layers, as `decode.generate` does. A prompt is read in pieces of
a few lengths, for each of which a program is compiled; these scan over the layers, as
that compiles in a fraction of the time and reads as fast.
Axes: P slots of a piece, S slots of the cache, N tokens of a chunk; there is one row.
"""

import functools
import re
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft.errors import InputError
from jaxpeft.generation import decode
from jaxpeft.generation.pool import regrouped
from jaxpeft.generation.sampling import Sampling, choose
from jaxpeft.parallel import sharding
from jaxpeft.transformer import decoder
from jaxpeft.transformer.attention import KV, Where
from jaxpeft.transformer.decoder import Stream, Transformer, layer_groups
from jaxpeft.transformer.rope import needs_length

_CHUNK = 8  # N: tokens of one call of the program, which also is the delay of a stop
_PIECES = (16, 64, 256)  # P; longer prompts are read in several pieces
_LEAST = 512  # S; it doubles whenever a text needs more
_BYTE = re.compile("<0x[0-9A-F]{2}>")  # a token of SentencePiece for one byte
_INCOMPLETE = "\ufffd"  # what an incomplete character is decoded to


class Session:
  """A model that continues one text after another.

  Attributes:
    whole: (transformer, params), the model that reads prompts.
    unstacked: the same model, which computes new tokens.
    stop_ids: token ids that end an answer.
    sampling: how each token is drawn.
    reused: tokens of the last prompt that had been read before.
  """

  def __init__(
    self,
    transformer: Transformer,
    params,
    stop_ids: tuple[int, ...] = (),
    sampling: Sampling = Sampling(),
  ):
    if sampling.penalizes:
      raise InputError("streaming knows no repetition_penalty; leave it at 1")
    self.whole = transformer, params
    self.unstacked = decode.unstack(transformer, params)
    self.stop_ids, self.sampling, self.reused = tuple(stop_ids), sampling, 0
    self._cache, self._held = None, []  # keys and values, and the tokens they are of

  def change(self, f):
    """Continues with the parameters f(params), e.g. with another adapter selected."""
    self.whole, self.unstacked = (
      (net, f(params)) for net, params in (self.whole, self.unstacked)
    )
    self.forget()

  def forget(self):
    """Drops the keys and values of the last text."""
    self._cache, self._held = None, []

  def tokens(
    self, prompt: list[int], max_new_tokens: int, seed: int = 0
  ) -> Iterator[list[int]]:
    """Yields new tokens, a few at a time, up to but excluding the first stop token.

    They are the tokens of `decode.generate` for this prompt alone, with the same seed.
    Whoever takes no more of them ends the answer; the session stays usable.

    Args:
      prompt: token ids of the text so far.
      max_new_tokens: most new tokens.
      seed: seed of the draws.
    Raises:
      InputError: the prompt is empty, or needs more positions than the model has.
    """
    decode.check(self.whole[0], [prompt], max_new_tokens)
    key = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(seed), 1)))
    end = np.array([len(prompt) + max_new_tokens], np.int32)
    token = self._read(prompt, max_new_tokens, key, end)
    drawn = 0
    while True:
      left = max_new_tokens - drawn
      new = self._go_on(token, drawn, left, key, end) if drawn else [token]
      stop = next((i for i, t in enumerate(new) if t in self.stop_ids), None)
      if new[:stop]:
        yield new[:stop]
      drawn += len(new)
      token = new[-1]
      if stop is not None or drawn >= max_new_tokens:
        return

  def _read(self, prompt, new: int, key, end) -> int:
    """Reads what is new of a prompt; the first token after it."""
    keep = _same(self._held, prompt[:-1])
    if needs_length(self.whole[0].config):
      keep = 0  # how a key is rotated depends on the length of the whole text
    self.reused = keep
    pieces = list(_pieces(prompt, keep))
    last, padded = pieces[-1]
    slots = max(last + len(padded[0]), len(prompt) + new)
    cache, self._cache, self._held = self._room(slots), None, []  # it may fail below
    for at, tokens in pieces:
      count = min(tokens.shape[1], len(prompt) - at)
      cache, token = _read(
        *self.whole, cache, tokens, at, count, key, end, self.sampling
      )
    token = int(token)
    self._cache, self._held = cache, list(prompt)
    return token

  def _go_on(self, token: int, drawn: int, left: int, key, end) -> list[int]:
    """At most `left` tokens after `token`, which was the one of number `drawn` - 1."""
    cache, held = self._cache, self._held
    self._cache, self._held = None, []  # the program takes the cache; it may fail
    cache, new, count = _chunk(
      *self.unstacked, cache, token, len(held), drawn, left, key, end, self.stop_ids,
      self.sampling, _CHUNK,
    )  # fmt: skip
    new = np.asarray(new)[: int(count)].tolist()
    self._cache, self._held = cache, [*held, token, *new[:-1]]
    return new

  def _room(self, slots: int):
    """The cache, with empty slots after what it holds: at least `slots` in all."""
    size = _LEAST
    while size < slots:
      size *= 2
    if self._cache is None:
      return _empty(*self.unstacked, size)
    have = jax.tree.leaves(self._cache)[0].shape[3]
    more = [(0, 0), (0, 0), (0, 0), (0, max(0, size - have)), (0, 0)]
    return jax.tree.map(lambda x: jnp.pad(x, more), self._cache)


def text(tokenizer, chunks: Iterable[list[int]]) -> Iterator[str]:
  """Yields text as soon as it is certain; together it is `tokenizer.decode` of all.

  A character whose bytes are not all there yet is held back, and so is whatever the
  next tokens may still change, e.g. a space that SentencePiece drops at the start.

  Args:
    tokenizer: a `Tokenizer`.
    chunks: lists of new tokens.
  """
  ids, done = [], ""
  for chunk in chunks:
    ids += chunk
    end = len(ids)
    while end and _BYTE.fullmatch(tokenizer.core.id_to_token(ids[end - 1]) or ""):
      end -= 1  # a run of bytes is decoded as a whole
    sure = tokenizer.decode(ids[:end]).rstrip(_INCOMPLETE)
    if sure.startswith(done) and sure != done:
      yield sure[len(done) :]
      done = sure
  rest = tokenizer.decode(ids)
  if rest[_same(done, rest) :]:
    yield rest[_same(done, rest) :]


def _same(a, b) -> int:
  """How many items at the start of two sequences are equal."""
  pairs = enumerate(zip(a, b, strict=False))
  return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _pieces(prompt: list[int], first: int):
  """Yields (place, tokens int32[1, P]) of a prompt from `first` on."""
  while first < len(prompt):
    left = len(prompt) - first
    size = next((p for p in _PIECES if p >= left), _PIECES[-1])
    row = prompt[first : first + size]
    yield first, np.array([row + [0] * (size - len(row))], np.int32)
    first += size


@functools.partial(jax.jit, static_argnums=(0, 2))
def _empty(transformer, params, slots: int):
  """A cache of S slots that holds nothing."""
  one = jnp.zeros((1, 1), jnp.int32)
  stream = Stream(one, Where(one, one), length=one[0] + 1)
  kept = jax.eval_shape(
    lambda p: decoder.run(transformer, p, stream, keep="kv")[1], params
  )
  return jax.tree.map(
    lambda x: jnp.zeros((*x.shape[:3], slots, *x.shape[4:]), x.dtype), kept
  )


@functools.partial(jax.jit, static_argnums=(0, 8), donate_argnums=2)
def _read(transformer, params, cache, tokens, at, count, key, end, sampling):
  """(cache, next token int32[]): reads one piece of a prompt.

  Args:
    transformer, params: the model.
    cache: keys and values of S slots, of which the first `at` are filled.
    tokens: int[1, P], of which the first `count` are text.
    at: int[], position of the first of them.
    count: int[].
    key: uint32[1, 2], the raw data of a PRNG key.
    end: int[1], positions of the whole text with all new tokens.
    sampling: how the token is drawn.
  """
  depths = [x[0].shape[0] for x in cache]
  groups = layer_groups(transformer.groups, transformer.config.depth)
  own = jnp.arange(tokens.shape[1])[None]
  where = Where(at + own, (own < count).astype(jnp.int32))
  kv = regrouped(cache, groups)
  hidden, kept = _run(transformer, params, kv, tokens, where, at, end)
  last = jax.lax.dynamic_slice_in_dim(hidden, count - 1, 1, 1)[:, 0]
  token = _draw(decoder.logits(transformer, params, last), key, 0, sampling)
  return _write(cache, regrouped(kept, depths), at), sharding.replicated(token[0])


@functools.partial(jax.jit, static_argnums=(0, 9, 10, 11), donate_argnums=2)
def _chunk(
  transformer, params, cache, token, at, drawn, left, key, end, stop_ids, sampling,
  most: int,
):  # fmt: skip
  """(cache, tokens int32[N], number of them): goes on until N, or a stop token.

  Args:
    transformer, params, cache, key, end, sampling: as in `_read`.
    token: int[], the last token, which the cache does not hold.
    at: int[], its position.
    drawn: int[], number of tokens that were drawn before.
    left: int[], most tokens, if that is less than N.
    stop_ids: token ids that end an answer.
    most: N.
  """

  def go_on(carry):
    i, token, *_ = carry
    stopped = functools.reduce(jnp.logical_or, [token == s for s in stop_ids], False)
    return (i < jnp.minimum(most, left)) & ~((i > 0) & jnp.any(stopped))

  def body(carry):
    i, token, new, cache = carry
    one = jnp.ones((1, 1), jnp.int32)
    where = Where((at + i) * one, one)
    hidden, kept = _run(transformer, params, cache, token[:, None], where, at + i, end)
    logits = decoder.logits(transformer, params, hidden[:, 0])
    token = _draw(logits, key, drawn + i, sampling)
    # The minimum is 0. It makes the slot depend on the new token, so that XLA updates
    # the cache in place, after the layers have read it; see `decode.decode`.
    cache = _write(cache, kept, at + i + jnp.minimum(token.min(), 0))
    return i + 1, token, new.at[i].set(token[0]), cache

  start = 0, jnp.asarray(token, jnp.int32)[None], jnp.zeros(most, jnp.int32), cache
  count, _, new, cache = jax.lax.while_loop(go_on, body, start)
  return cache, *sharding.replicated((new, count))


def _run(transformer, params, cache, tokens, where, filled, end):
  """Final hidden states, keys and values of tokens that see the filled slots."""
  slots = jnp.arange(jax.tree.leaves(cache)[0].shape[3])[None]
  seen = Where(slots, (slots < filled).astype(jnp.int32))
  length = end if needs_length(transformer.config) else None
  return decoder.run(
    transformer,
    params,
    Stream(tokens, where, length=length),
    kv=[KV(k, v, seen) for k, v in cache],
    keep="kv",
  )


def _draw(logits, key, number, sampling):
  own = jax.vmap(jax.random.fold_in, (0, None))(jax.random.wrap_key_data(key), number)
  return choose(own, logits, sampling)


def _write(cache, kept, slot):
  return jax.tree.map(
    lambda c, x: jax.lax.dynamic_update_slice_in_dim(c, x, slot, 3), cache, kept
  )
