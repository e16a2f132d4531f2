"""Rewards of texts, outside of training: batches of texts of like lengths."""

import functools

import jax
import numpy as np

from jaxpeft import console
from jaxpeft.data import encode, pairs
from jaxpeft.data.examples import Example
from jaxpeft.errors import InputError, unknown
from jaxpeft.objectives import reward
from jaxpeft.parallel import sharding

_TOKENS = 2**13  # of a batch, unless a single text has more
_LEAST = 32  # tokens of a row


def rewards(
  net, params, texts: list[list[int]], batch_size: int | None = None, label=None
) -> list[float]:
  """The head's value at the last token of every text.

  Args:
    net: the `Transformer`.
    params: its parameters, with a head.
    texts: token ids, at least one each.
    batch_size: most texts at once; None or 0 is as many as fit.
    label: label of a progress bar; None shows no bar.
  Raises:
    InputError: there is no head.
  """
  order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
  cut, batches, at = sharding.cut("batch"), [], 0
  while at < len(order):
    width = _width(len(texts[order[at]]))
    same = [i for i in order[at:] if len(texts[i]) <= width]
    some = same[: batch_size or max(1, _TOKENS // width)]
    full = _width(len(some), 1) if len(some) == len(same) else len(some)
    batches.append((some, width, -(-full // cut) * cut))
    at += len(some)
  out = [0.0] * len(texts)
  for some, width, rows in console.progress(batches, label, len(batches), "batches"):
    ids = [np.array(texts[i], np.int32) for i in some]
    groups = [[Example(x, np.arange(len(x)) > 0)] for x in ids]
    groups += [[] for _ in range(rows - len(groups))]
    found = np.asarray(_rewards(net, params, pairs.to_arrays(groups, width)))
    for row, i in enumerate(some):
      out[i] = float(found[row, 0])
  return out


def of_texts(net, params, tokenizer, texts, pool="last", batch_size=None):
  """Rewards of texts, see `Model.reward`."""
  if isinstance(texts, str):
    raise InputError(f"texts must be a list, not the text {texts[:40]!r}; give [text]")
  if pool not in reward.POOLS:
    raise unknown("pool", pool, reward.POOLS)
  pairs_ = []
  for i, text in enumerate(texts):
    pair = ("", text) if isinstance(text, str) else text
    if not (
      isinstance(pair, tuple | list)
      and len(pair) == 2
      and all(isinstance(x, str) for x in pair)
    ):
      kind = type(text).__name__
      raise InputError(
        f"text {i} must be a text, or a prompt and an answer, not {kind}"
      )
    pairs_.append(tuple(pair))
  ids = [ids for ids, _ in encode.together(pairs_, tokenizer)]
  if pool == "hf":
    ids = [trimmed(x, reward.padding(tokenizer)) for x in ids]
  limit = net.config.max_positions
  for i, some in enumerate(ids):
    if not 0 < len(some) <= limit:
      raise InputError(
        f"text {i} has {len(some)} tokens; the model takes 1 to {limit}: shorten it"
      )
  return rewards(net, params, ids, batch_size, "scoring")


def trimmed(ids: list[int], token: int | None) -> list[int]:
  """The ids without that token at their end; at least one stays."""
  count = len(ids)
  while count > 1 and ids[count - 1] == token:
    count -= 1
  return ids[:count]


@functools.partial(jax.jit, static_argnums=0)
def _rewards(net, params, batch):
  return sharding.replicated(reward.rewards(net, params, batch))


def _width(length: int, least: int = _LEAST) -> int:
  """A power of two, so that there are few programs to compile."""
  return max(least, 1 << (length - 1).bit_length())
