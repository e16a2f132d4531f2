"""A mixture of experts: each token passes through a few of many feed-forward parts.

Tokens are sorted by expert and cut into blocks of one expert each, so that a block is a
product with one weight. So every token is computed exactly by its own experts, none is
dropped, and shapes are static; blocks that are not full cost some padding.
Axes: n tokens, D width, E experts, k experts per token, m block size.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxpeft.linear import linear
from jaxpeft.transformer.config import ModelConfig

_LARGEST = 256  # most rows of a block


def mix(c: ModelConfig, x, router, weights, feed_forward):
  """The weighted sum of each token's experts, [B, T, D].

  Args:
    c: the architecture.
    x: float[B, T, D].
    router: a weight [D, E].
    weights: a tree of weights whose leaves have a leading axis E.
    feed_forward: (float[m, D], the weights of one expert) -> float[m, D].
  """
  rows = x.reshape(-1, x.shape[-1])
  expert, share = route(c, rows, router)
  n, k = expert.shape
  size = _block_size(n * k, c.experts)
  source, owner = _blocks(expert.reshape(-1), c.experts, size)

  # An empty place has source n k, whose token would be n: it reads zeros.
  taken = rows.at[source // k].get(mode="fill", fill_value=0)

  def block(_, item):
    x, owner = item
    own: Any = jax.tree.map(
      lambda w: lax.dynamic_index_in_dim(w, owner, keepdims=False), weights
    )
    return None, feed_forward(x, own)

  # The backward pass recomputes a block. Otherwise it would save each block's weights.
  block = jax.checkpoint(block, prevent_cse=False)
  out = lax.scan(block, None, (taken, owner))[1]
  out = out.reshape(-1, x.shape[-1]).astype(jnp.float32)
  source = source.reshape(-1)
  weight = share.reshape(-1).at[source].get(mode="fill", fill_value=0)
  total = jnp.zeros(rows.shape, jnp.float32)
  total = total.at[source // k].add(out * weight[:, None], mode="drop")
  return total.astype(x.dtype).reshape(x.shape)


def route(c: ModelConfig, rows, router):
  """(int32[n, k] experts, float32[n, k] their weights) of tokens [n, D]."""
  share = jax.nn.softmax(linear(rows, router, "router").astype(jnp.float32))
  share, expert = lax.top_k(share, c.experts_per_token)
  if c.normalize_experts:
    share = share / share.sum(-1, keepdims=True)
  return expert, share


def _block_size(pairs: int, experts: int) -> int:
  """About the mean number of tokens of an expert, as a power of two."""
  return 2 ** min(int(math.log2(max(pairs / experts, 1))), int(math.log2(_LARGEST)))


def _blocks(expert, experts: int, size: int):
  """(int32[blocks, m] sources, int32[blocks] experts) for experts int32[p] of pairs.

  A source is the index of a pair of a token and one of its experts; p marks a place
  that stays empty.
  """
  pairs = expert.shape[0]
  # An expert with tokens leaves at most one block that is not full.
  blocks = min(pairs, pairs // size + min(experts, pairs))
  count = jnp.zeros(experts, jnp.int32).at[expert].add(1)
  first = jnp.cumsum(-(-count // size)) - -(-count // size)  # each expert's first block
  order = jnp.argsort(expert)  # pairs, sorted by expert; the sort is stable
  sorted_ = expert[order]
  rank = jnp.arange(pairs) - (jnp.cumsum(count) - count)[sorted_]
  place = first[sorted_] * size + rank
  source = jnp.full(blocks * size, pairs, jnp.int32).at[place].set(order)
  # Blocks after the last one in use belong to the last expert, and are empty.
  owner = jnp.searchsorted(first, jnp.arange(blocks), side="right") - 1
  return source.reshape(blocks, size), owner.astype(jnp.int32)
