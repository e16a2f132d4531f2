"""The order of rows in each epoch: a permutation that needs no memory of its own.

Position p of an epoch gets the row cipher(p), where the cipher permutes the numbers of
an even number of bits. Where the result is no row, it is enciphered again, which ends
at a row ("cycle walking"; Black and Rogaway, 2002). The cipher is four rounds of Simon
(Beaulieu et al., 2013, eprint 2013/404) with keys from C++'s `std::seed_seq`.

The order is a contract: a run resumes with it. It is that of the library grain, bit for
bit, from which runs of older versions have it. That includes a flaw: if there are
2**16 + 1, 2**18 + 1, 2**20 + 1, ... rows, an epoch shows one row twice and another not
at all, since the last number needs a bit more than the cipher has.
"""

import functools
import math

import numpy as np

_ROUNDS = 4
_TABLE = 16  # bits up to which the cipher's whole table is computed
_DEPTH = 1  # where grain has the seed, counted from the shuffling


def rows(positions: np.ndarray, count: int, seed: int) -> np.ndarray:
  """int64[n]: the numbers of the rows at positions of an endless sequence of epochs.

  Args:
    positions: int64[n], from 0; each `count` of them are an epoch.
    count: number of rows, at least 1.
    seed: of the run.
  """
  epochs, places = np.divmod(np.asarray(positions, np.int64), count)
  out = np.zeros(len(places), np.int64)
  for epoch in np.unique(epochs).tolist():
    here = epochs == epoch
    out[here] = _permuted(places[here], count, (_own_seed(seed) + epoch) % 2**32)
  return out


def _own_seed(seed: int) -> int:
  """The seed that grain derives from that of the run."""
  return int(np.random.SeedSequence([seed, _DEPTH]).generate_state(1)[0])


def _permuted(places: np.ndarray, count: int, seed: int) -> np.ndarray:
  if count == 1:
    return np.zeros_like(places)
  bits = math.ceil(math.log2(count - 1))
  bits = max(bits + bits % 2, 16)
  if bits <= _TABLE:
    return _table(bits, count, seed)[places % 2**bits]
  out = _encipher(places, bits, _keys(seed))
  while (outside := out >= count).any():
    out[outside] = _encipher(out[outside], bits, _keys(seed))
  return out


@functools.lru_cache(maxsize=8)
def _table(bits: int, count: int, seed: int) -> np.ndarray:
  """int64[2**bits]: where the walk from each number ends."""
  out = _encipher(np.arange(2**bits), bits, _keys(seed))
  # Each walk takes over the walk of the number where it is, and so doubles in length.
  for _ in range(bits + 1):
    outside = out >= count
    out[outside] = out[out[outside]]
  return out


def _encipher(values: np.ndarray, bits: int, keys: list[int]) -> np.ndarray:
  half = bits // 2
  mask = 2**half - 1

  def turned(x, by: int):
    return ((x << by) | (x >> (half - by))) & mask

  def mixed(x):
    return (turned(x, 1) & turned(x, 8)) ^ turned(x, 2)

  left, right = (values >> half) & mask, values & mask
  for first, second in zip(keys[::2], keys[1::2], strict=True):
    left = left ^ mixed(right) ^ (first & mask)
    right = right ^ mixed(left) ^ (second & mask)
  return (left << half) | right


@functools.lru_cache(maxsize=8)
def _keys(seed: int) -> list[int]:
  """The numbers that `std::seed_seq{seed}` generates. Source: C++17, 29.6.7.1."""
  n, words = _ROUNDS, 2**32
  begin = [0x8B8B8B8B] * n
  t = (n - 1) // 2  # for n < 7
  p, q, m = (n - t) // 2, (n - t) // 2 + t, max(2, n)

  def rotated(k: int) -> int:
    x = begin[k % n] ^ begin[(k + p) % n] ^ begin[(k - 1) % n]
    return x ^ (x >> 27)

  for k in range(m):
    r1 = 1664525 * rotated(k) % words
    r2 = (r1 + (1, k % n + seed, k % n, k % n)[k]) % words  # of a sequence of one seed
    begin[(k + p) % n] = (begin[(k + p) % n] + r1) % words
    begin[(k + q) % n] = (begin[(k + q) % n] + r2) % words
    begin[k % n] = r2
  for k in range(m, m + n):
    x = (begin[k % n] + begin[(k + p) % n] + begin[(k - 1) % n]) % words
    r3 = 1566083941 * (x ^ (x >> 27)) % words
    r4 = (r3 - k % n) % words
    begin[(k + p) % n] ^= r3
    begin[(k + q) % n] ^= r4
    begin[k % n] = r4
  return begin
