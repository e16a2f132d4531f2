"""Collectives counted in a compiled program, against programs whose own are known."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxpeft.planning import collectives

LAYERS = 5


def compiled(body, width: int = 64):
  """A loop of five layers over 8 devices, each of which calls `body` on its part."""
  mesh = Mesh(jax.devices()[:8], "x")
  cut, whole = PartitionSpec(None, "x"), PartitionSpec()

  @functools.partial(
    jax.shard_map, mesh=mesh, in_specs=(cut, whole), out_specs=whole, check_vma=False
  )
  def run(weights, x):
    return jax.lax.scan(lambda x, w: (body(w, x), None), x, weights)[0]

  shapes = jnp.zeros((LAYERS, width)), jnp.zeros(width)
  return jax.jit(run).lower(*shapes).compile().as_text()


@pytest.mark.parametrize(
  ("body", "kind", "size"),
  [
    (lambda w, x: x + jax.lax.all_gather(w, "x", tiled=True), "all-gather", 64 * 4),
    (lambda w, x: x + jax.lax.psum(x * w[0], "x"), "all-reduce", 64 * 4),
    (
      lambda w, x: x + jax.lax.psum_scatter(x * w[0], "x", tiled=True)[0],
      "reduce-scatter",
      64 * 4,
    ),
    (
      lambda w, x: x + jax.lax.ppermute(w, "x", [(i, 7 - i) for i in range(8)])[0],
      "collective-permute",
      8 * 4,
    ),
  ],
)
def test_what_a_loop_of_five_sends(body, kind, size):
  assert collectives.of(compiled(body)) == [(kind, "f32", LAYERS, LAYERS * size)]


def test_starts_channels_and_loops_as_accelerators_write_them():
  text = """
%half (a: f32[]) -> f32[] {
  ROOT %a = f32[] parameter(0)
}
%cond (p: (s32[], u8[4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}
%body (p: (s32[], u8[4])) -> (s32[], u8[4]) {
  %w = u8[4]{0} get-tuple-element(%p), index=1
  %s = f32[2]{0} constant({1, 2})
  %g = ((u8[4]{0}, f32[2]{0}), (u8[32]{0}, f32[16]{0})) all-gather-start(%w, %s), channel_id=1
  %again = (u8[4]{0}, u8[32]{0}) all-gather-start(%w), channel_id=1
  %r = f32[2]{0} all-reduce-start(%s), channel_id=2, to_apply=%half
}
ENTRY %main (p: (s32[], u8[4])) -> (s32[], u8[4]) {
  %p = (s32[], u8[4]{0}) parameter(0)
  ROOT %loop = (s32[], u8[4]{0}) while(%p), condition=%cond, body=%body
}
"""  # noqa: E501
  assert collectives.of(text) == [
    ("all-gather", "f32", 3, 3 * 64),
    ("all-gather", "u8", 3, 3 * 32),
    ("all-reduce", "f32", 3, 3 * 8),
  ]
