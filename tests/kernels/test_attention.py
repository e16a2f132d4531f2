"""The attention kernels as far as a CPU can tell: bounds, numbers, code.

What Triton must see before it is imported is a script in a process of its own.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpeft.transformer import attention as plain
from jaxpeft.transformer.attention import EVERYWHERE, KV, Where
from tests.support import aot
from tests.support.commands import run

pytest.importorskip("jaxpeft_kernels")

from jaxpeft_kernels import attention, attention_tiles
from jaxpeft_kernels.attention_tiles import TILES, Tile

KERNELS = ("forward", "backward_q", "backward_kv")
_QUERIES, _KEYS = 12, 20
_TILES = (Tile(4, 4, 4, 1), Tile(8, 4, 4, 1), Tile(2, 8, 4, 1))


@jax.jit
def _bounds(query, key, window):
  """Of each of _TILES: (bounds of tiles of queries, of tiles of keys)."""
  q, k = (attention.stamps(x, _KEYS, i) for x, i in ((query, False), (key, True)))
  window = jnp.minimum(window, _KEYS)[None]
  return [
    [attention.bounds(q, k, window, tile, of_keys)[0] for of_keys in (False, True)]
    for tile in _TILES
  ]


def _places(n: int):
  """Positions and segments of n tokens; many are 0, so that much is seen."""
  number = st.one_of(st.integers(0, 3), st.integers(0, _KEYS - 1))
  segment = st.one_of(st.just(1), st.integers(0, 3))
  lists = [st.lists(x, min_size=n, max_size=n) for x in (number, segment)]
  order = st.booleans()

  def array(lists, order):
    pairs = sorted(zip(*lists, strict=True), key=lambda x: x[::-1] if order else 0)
    return Where(*(jnp.array([x], jnp.int32) for x in zip(*pairs, strict=True)))

  return st.builds(array, st.tuples(*lists), order)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(_places(_QUERIES), _places(_KEYS), st.sampled_from((1, 2, 7, 20, EVERYWHERE)))
def test_bounds_have_every_pair_that_is_visible(query, key, window):
  seen = np.asarray(plain.visible(query, key, window))[0]
  for tile, both in zip(_TILES, _bounds(query, key, window), strict=True):
    for bounds, size, other, pairs in (
      (both[0], tile.rows, tile.keys, seen),
      (both[1], tile.keys, tile.rows, seen.T),
    ):
      bounds, count = np.asarray(bounds), -(-pairs.shape[1] // other)
      assert len(bounds) == -(-len(pairs) // size)
      for i, (first, middle, after, end) in enumerate(bounds):
        assert 0 <= first <= middle <= after <= end <= count
        mine = pairs[i * size : (i + 1) * size]
        assert not mine[:, : first * other].any()
        assert not mine[:, end * other :].any()
        if middle < after:  # neither masked nor checked against the array's size
          full = mine[:, middle * other : after * other]
          assert full.shape == (size, (after - middle) * other)
          assert full.all()


def test_bounds_of_usual_rows_are_tight():
  """At 8,192 tokens: 512-token examples, causality, a window."""
  t, tile = 8192, Tile(128, 128, 8, 2)
  index = jnp.arange(t, dtype=jnp.int32)[None]
  one = jnp.ones_like(index)

  def visited(where, window, tile=tile, of_keys=False):
    """(tiles in all runs, in the middle ones), of all."""
    query, key = (attention.stamps(where, t, x) for x in (False, True))
    window = jnp.array([min(window, t)])
    bounds = attention.bounds(query, key, window, tile, of_keys)
    first, middle, after, end = np.asarray(bounds, np.float64).T
    count = -(-t // tile.rows) * -(-t // tile.keys)
    return (end - first).sum() / count, (after - middle).sum() / count

  packed = Where(index % 512, index // 512 + 1)
  assert visited(packed, EVERYWHERE) == (160 / 64**2, 96 / 64**2)  # 3.9 %
  for of_keys in (False, True):  # all but the diagonal needs no mask
    assert visited(Where(index, one), EVERYWHERE, tile, of_keys) == (65 / 128, 63 / 128)
  assert visited(Where(index, one), 1024)[0] < 0.14
  # Padding adds nothing, though its tile has real tokens, too.
  padded = Where(index % 512, packed.segment * (index < t - 600))
  assert visited(padded, EVERYWHERE)[0] < 160 / 64**2
  sizes = {
    (tile.rows, tile.keys, name == "backward_kv")
    for architecture in TILES.values()
    for name in KERNELS
    for tiles in architecture[name].values()
    for tile in tiles
  }
  for rows, keys, of_keys in sizes:
    share, _ = visited(packed, EVERYWHERE, Tile(rows, keys, 8, 2), of_keys)
    assert share <= 0.05, (rows, keys, of_keys)


def test_the_longest_row_fits_its_stamps():
  n = attention.MOST_TOKENS
  last = Where(jnp.array([[n - 1]], jnp.int32), jnp.array([[n]], jnp.int32))
  assert 0 < int(attention.stamps(last, n, True)[0, 0]) < 2**31 - 1


def test_the_reference_is_our_attention():
  draw = np.random.default_rng(0)
  position = jnp.array([[*range(9), *range(6), 0, 0]], jnp.int32)
  segment = jnp.array([[1] * 9 + [2] * 6 + [0] * 2], jnp.int32)
  where = Where(position, segment)
  q, k, v = (
    jnp.array(draw.standard_normal(shape, np.float32))
    for shape in ((1, 2, 3, 17, 8), (1, 2, 17, 8), (1, 2, 17, 8))
  )
  args = q, where, [KV(k, v, where)], 4, 0.3, 2.0
  got, want = attention.attend_ref(*args), plain.attend(*args)
  np.testing.assert_allclose(got[..., :15, :], want[..., :15, :], atol=1e-6)
  np.testing.assert_array_equal(got[..., 15:, :], 0)


def test_what_the_kernels_cannot_compute_is_known():
  def usable(dtype="bfloat16", n=128, s=64, kind=None):
    def array(*shape, dtype=dtype):
      return jax.ShapeDtypeStruct(shape, dtype)

    part = array(1, 2, s, n), array(1, 2, s, n, dtype=kind or dtype)
    return attention.usable(array(1, 2, 2, 64, n), [part])

  assert all(usable(n=n) for n in (64, 80, 96, 128, 256))
  assert usable("float16")
  assert usable(s=2**15)
  assert not usable("float32")
  assert not usable(kind="float32")
  assert not usable(n=257)
  assert not usable(s=2**15 + 1)
  assert not usable(s=0)


def test_every_card_has_tiles_for_every_head():
  for capability in (90,):
    for name in KERNELS:
      for n in (16, 64, 80, 96, 128, 256):
        for capped in (False, True):
          assert attention_tiles.tile_for(name, n, capped, capability)
  assert attention_tiles.architecture(70) is None


@pytest.mark.slow
def test_numbers_in_tritons_interpreter(tmp_path):
  env = aot.environment("triton") | dict(TRITON_CACHE_DIR=str(tmp_path))
  assert "are right" in run(env, "tests/support/attention_interpreter.py")
