"""Synthetic text whose entropy is known: a mixture of n-gram tables of growing order.

Each token is drawn in two steps: first how many of the tokens before it count (0 to
`order`), then one of a few candidates that a fixed random table lists for exactly these
tokens. Both draws have fixed probabilities; candidates are themselves drawn from Zipf's
law. A few contexts are frequent and most are rare, so more text helps. A small model
cannot store all tables, so a larger model helps.

The text is a Markov chain over its last `order` tokens. Its stationary distribution is
computed, not sampled. From it follows the entropy per token. No model can have a lower
loss; it is E in a scaling law. Rows start in the stationary distribution.
Axes: R rows, T tokens, V vocabulary, K order, M candidates.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft.errors import InputError

_MOST = 2**24  # probabilities of next tokens that are held at once, 128 MiB
_ITERATIONS, _CHANGE = 5000, 1e-11


class Chain(NamedTuple):
  """What `draw` and `probabilities` need of a source, as arrays."""

  candidates: jax.Array  # int32[V + V^2 + ... + V^K, M], tables of orders 1 to K
  start: jax.Array  # uint32[V^K], the stationary distribution, cumulated, times 2^32
  orders: jax.Array  # float32[K + 1], probabilities of the orders 0 to K
  ranks: jax.Array  # float32[M], probabilities of a table's candidates
  tokens: jax.Array  # float32[V], probabilities of tokens where nothing counts


@dataclasses.dataclass(frozen=True)
class Source:
  """A text source, drawn once from a seed.

  Attributes:
    vocabulary: number of tokens.
    orders: probabilities that 0, 1, ..., K tokens before the next one count.
    candidates: next tokens that a table lists for each context; the j-th has a
      probability proportional to 1 / j.
    zipf: exponent of Zipf's law, from which the candidates are drawn.
    seed: of the tables.
  """

  vocabulary: int = 64
  orders: tuple[float, ...] = (0.05, 0.15, 0.3, 0.5)
  candidates: int = 2
  zipf: float = 1.0
  seed: int = 0

  def __post_init__(self):
    v, k = self.vocabulary, len(self.orders) - 1
    if k < 1 or v < 2 or self.candidates < 1:
      raise InputError(
        f"scaling.text needs at least two tokens, one candidate and two orders; it has "
        f"vocabulary {v}, candidates {self.candidates} and orders {self.orders}"
      )
    for x in self.orders:
      if isinstance(x, bool) or not isinstance(x, int | float):
        raise InputError(f"scaling.text.orders: {x!r} is no number")
    total = sum(self.orders)
    if not min(self.orders) > 0 or not abs(total - 1) < 1e-6:
      raise InputError(
        f"scaling.text.orders {self.orders} are no probabilities above 0 that sum to 1"
      )
    if not 0 <= self.zipf < 100:
      raise InputError(f"scaling.text.zipf {self.zipf} is not from 0 to 100")
    if not 0 <= self.seed < 2**32:
      raise InputError(f"scaling.text.seed {self.seed} is not from 0 to {2**32 - 1}")
    if (k + 1) * math.log(v) > math.log(_MOST) + 1e-9 or self.candidates > v:
      raise InputError(
        f"scaling.text: {v} tokens to the power of {k + 1} are more than {_MOST:,} "
        f"probabilities, or {self.candidates} candidates more than tokens; lower "
        "scaling.text.vocabulary, or give fewer orders"
      )

  @property
  def order(self) -> int:
    """K: how many tokens before it a token depends on at most."""
    return len(self.orders) - 1

  @functools.cached_property
  def tables(self) -> np.ndarray:
    """int32[V + ... + V^K, M]: the candidates of all contexts, shortest ones first."""
    rows = sum(self.vocabulary**k for k in range(1, self.order + 1))
    # Every version of NumPy gives the same bits, but not the same distributions.
    bits = np.random.PCG64(self.seed).random_raw(rows * self.candidates)
    uniform = (bits >> np.uint64(11)) * 2.0**-53
    ends = np.cumsum(_zipf(self.vocabulary, self.zipf))[:-1]
    found = np.searchsorted(ends, uniform, side="right")
    return found.reshape(rows, self.candidates).astype(np.int32)

  def next_token(self) -> np.ndarray:
    """float64[V^K, V]: the probabilities of the next token after each context.

    A context is the number whose digits to the base V are its tokens, the last token
    being the last digit.
    """
    v, states = self.vocabulary, np.arange(self.vocabulary**self.order)
    p = np.tile(self.orders[0] * _zipf(v, self.zipf), (len(states), 1))
    ranks = _zipf(self.candidates, 1.0)
    for k, weight in enumerate(self.orders[1:], 1):
      listed = self.tables[_first_row(v, k) + states % v**k]
      for j, share in enumerate(ranks):
        p[states, listed[:, j]] += weight * share
    return p

  @functools.cached_property
  def stationary(self) -> np.ndarray:
    """float64[V^K]: how frequent each context is in a long text."""
    return self._solved[0]

  @property
  def entropy(self) -> float:
    """Nats per token, given all tokens before: no model has a lower loss."""
    return self._solved[1]

  @functools.cached_property
  def _solved(self) -> tuple[np.ndarray, float]:
    """(the stationary distribution, by power iteration; the entropy)."""
    v, p = self.vocabulary, self.next_token()
    pi = np.full(v**self.order, float(v) ** -self.order)
    for _ in range(_ITERATIONS):
      new = np.einsum("ar,arx->rx", pi.reshape(v, -1), p.reshape(v, -1, v)).ravel()
      change = np.abs(new - pi).sum()
      pi = new / new.sum()
      if change < _CHANGE:
        break
    else:
      raise InputError(
        f"scaling.text.orders {self.orders}: the text forgets its start too slowly; "
        "raise the first one"
      )
    np.multiply(p, np.log(p), out=p)
    return pi, float(-pi @ p.sum(1))

  @functools.cached_property
  def chain(self) -> Chain:
    """The source as arrays of JAX."""
    ends = np.floor(np.cumsum(self.stationary) * 2.0**32).clip(0, 2.0**32 - 1)
    return Chain(
      jnp.asarray(self.tables),
      jnp.asarray(ends.astype(np.uint32)),
      jnp.asarray(self.orders, jnp.float32),
      jnp.asarray(_zipf(self.candidates, 1.0), jnp.float32),
      jnp.asarray(_zipf(self.vocabulary, self.zipf), jnp.float32),
    )


def draw(chain: Chain, key, rows: int, tokens: int):
  """int32[R, T]: rows of new text, each from a random place of an endless one."""
  v, k = chain.tokens.size, chain.orders.size - 1
  begin, rest = jax.random.split(key)
  bits = jax.random.bits(begin, (rows,), jnp.uint32)
  state = jnp.searchsorted(chain.start, bits, side="right").astype(jnp.int32)
  state = jnp.minimum(state, v**k - 1)
  first = jnp.stack([state // v**i % v for i in reversed(range(k))], 1)
  uniform = jax.random.uniform(rest, (3, max(tokens - k, 0), rows))
  order = _pick(chain.orders, uniform[0])
  rank = _pick(chain.ranks, uniform[1])
  alone = _pick(chain.tokens, uniform[2])
  offsets = jnp.array([0, *(_first_row(v, i) for i in range(1, k + 1))], jnp.int32)
  sizes = jnp.array([v**i for i in range(k + 1)], jnp.int32)

  def step(state, now):
    order, rank, alone = now
    listed = chain.candidates[offsets[order] + state % sizes[order], rank]
    token = jnp.where(order == 0, alone, listed)
    return (state * v + token) % v**k, token  # below V^(K + 1), which int32 holds

  _, more = jax.lax.scan(step, state, (order, rank, alone))
  return jnp.concatenate([first, more.T], 1)[:, :tokens]


def probabilities(chain: Chain, tokens):
  """float32[R, T - K, V]: the true probabilities of the tokens K to T - 1 of rows."""
  v, k = chain.tokens.size, chain.orders.size - 1
  shape = (tokens.shape[0], tokens.shape[1] - k, v)
  p = jnp.broadcast_to(chain.orders[0] * chain.tokens, shape)
  state = jnp.zeros(shape[:2], jnp.int32)
  for i in range(1, k + 1):
    state += tokens[:, k - i : tokens.shape[1] - i] * v ** (i - 1)
    listed = chain.candidates[_first_row(v, i) + state]
    for j in range(chain.ranks.size):
      share = chain.orders[i] * chain.ranks[j]
      p += share * jax.nn.one_hot(listed[..., j], v)
  return p


def _zipf(n: int, exponent: float) -> np.ndarray:
  """float64[n]: probabilities proportional to 1 / rank^exponent."""
  p = np.arange(1, n + 1, dtype=float) ** -exponent
  return p / p.sum()


def _first_row(vocabulary: int, order: int) -> int:
  """Where the contexts of an order begin in `tables`."""
  return sum(vocabulary**k for k in range(1, order))


def _pick(p, uniform):
  """The entry of a distribution p [n] that each uniform number falls into."""
  return jnp.searchsorted(jnp.cumsum(p)[:-1], uniform, side="right").astype(jnp.int32)
