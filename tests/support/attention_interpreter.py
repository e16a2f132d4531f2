"""The attention kernels' numbers, by Triton's interpreter. Run by tests/kernels.

In a process of its own: TRITON_INTERPRET is read where a kernel is defined. In float32,
for the reasons that `kernel_interpreter` gives.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

import jax
import jax.numpy as jnp
import numpy as np
from jaxpeft_kernels import attention as kernels
from jaxpeft_kernels import attention_tiles, bridge
from jaxpeft_kernels.attention_tiles import Tile

from jaxpeft.transformer import attention
from jaxpeft.transformer.attention import EVERYWHERE, KV, Where, visible
from tests.support.kernel_interpreter import Tensor

SQUARE = dict(forward=(16, 16), backward_q=(16, 16), backward_kv=(16, 16))
OBLONG = dict(forward=(32, 16), backward_q=(16, 32), backward_kv=(32, 16))


def interpret(kernel, *arguments, out, grid, warps, stages, **constants):
  """`bridge.call`, for the interpreter. What a kernel does not write is NaN."""
  del warps, stages

  def run(*arrays):
    arrays = [np.array(x, order="C") for x in arrays]
    results = [np.full(x.shape, np.nan, x.dtype) for x in out]
    kernel[grid](*map(Tensor, arrays), *map(Tensor, results), **constants)
    return results

  return jax.pure_callback(run, out, *arguments)


def plain(q, where, parts, window, scale, cap):
  """The definition: a softmax over all keys that `visible` allows; without any, 0."""
  k, v = (jnp.concatenate([getattr(part, x) for part in parts], 2) for x in "kv")
  s = jnp.einsum("bkgtn,bksn->bkgts", q, k) * scale
  s = s if cap is None else cap * jnp.tanh(s / cap)
  seen = jnp.concatenate([visible(where, x.where, window) for x in parts], -1)
  seen = seen[:, None, None]
  top = jnp.where(seen, s, -1e30).max(-1, keepdims=True)
  p = jnp.where(seen, jnp.exp(s - top), 0)
  total = p.sum(-1, keepdims=True)
  return jnp.einsum("bkgts,bksn->bkgtn", p / jnp.where(total > 0, total, 1), v)


def packed(draw, b: int, t: int, padding: int):
  """(positions, segments) int32[b, t] of examples of random lengths, then padding."""
  position, segment = np.zeros((2, b, t), np.int32)
  for row in range(b):
    at, number = 0, 1
    while at < t - padding:
      end = min(at + int(draw.integers(1, t // 2)), t - padding)
      position[row, at:end], segment[row, at:end] = np.arange(end - at), number
      at, number = end, number + 1
  return position, segment


def case(
  seed, b, k, g, t, n, window=EVERYWHERE, cap=None, padding=0, parts=1, order=True
):
  """Random arguments of `attend`.

  Args:
    seed: of the random numbers.
    b, k, g, t, n: sizes: rows, heads of keys, queries of each, tokens, head_dim.
    window, cap: as in `attend`.
    padding: how many of a row's tokens are padding.
    parts: 2 draws a third of the tokens as queries and first part; the second has the
      other tokens.
    order: whether the tokens of a part are in their order.
  """
  draw = np.random.default_rng(seed)
  place = packed(draw, b, t, padding)
  chosen = np.stack([draw.permutation(t) for _ in range(b)])
  cut = t if parts == 1 else t // 3
  pieces = [chosen[:, :cut], chosen[:, cut:]][:parts]
  if order:
    pieces = [np.sort(x, 1) for x in pieces]

  def normal(*shape):
    return jnp.array(draw.standard_normal(shape, np.float32))

  wheres = [
    Where(*(jnp.array(np.take_along_axis(x, i, 1)) for x in place)) for i in pieces
  ]
  kvs = [
    KV(normal(b, k, i.shape[1], n), normal(b, k, i.shape[1], n), where)
    for i, where in zip(pieces, wheres, strict=True)
  ]
  return normal(b, k, g, cut, n), wheres[0], kvs, window, n**-0.5, cap


def gradients(f, q, where, parts, window, scale, cap):
  """[output, dq, dk and dv of each part] of f, for a random gradient of the output.

  Padding's output is never used, so it counts as 0.
  """
  real = (where.segment != 0)[:, None, None, :, None]
  g = jnp.asarray(np.random.default_rng(1).standard_normal(q.shape, np.float32)) * real

  def of(q, kv):
    parts_ = [KV(*x, part.where) for x, part in zip(kv, parts, strict=True)]
    return f(q, where, parts_, window, scale, cap)

  @jax.jit
  def run(q, kv):
    out, vjp = jax.vjp(of, q, kv)
    return jax.tree.leaves((out * real, vjp(g.astype(out.dtype))))

  return [np.asarray(x) for x in run(q, [(x.k, x.v) for x in parts])]


def exact(*args):
  """`gradients` of `plain`, in float64."""
  with jax.enable_x64(True):
    args = jax.tree.map(
      lambda x: np.float64(x) if getattr(x, "dtype", None) == np.float32 else x, args
    )
    return gradients(plain, *jax.tree.map(jnp.asarray, args[:3]), *args[3:])


def check(name: str, args, sizes=SQUARE, ours=True):
  """Asserts the kernels' and the reference's error, of output and all gradients.

  Args:
    name: of the case.
    args: of `attend`.
    sizes: queries and keys of each kernel's tile.
    ours: whether jaxpeft's `attend` supports this, too.
  """
  attention_tiles.tile_for = lambda kernel, *_: Tile(*sizes[kernel], 4, 1)
  got = gradients(kernels.attend, *args)
  wants = [exact(*args), gradients(kernels.attend_ref, *args)]
  wants += [gradients(attention.attend, *args)] if ours else []
  worst = max(
    np.linalg.norm(x - y) / max(np.linalg.norm(y), 1e-9)
    for want in wants
    for x, y in zip(got, want, strict=True)
  )
  print(f"{name}: worst relative error {worst:.1e}", flush=True)
  assert worst <= 1e-6, name


def unseen():
  """Tiles that nobody sees are not loaded: there, NaN harms nobody."""
  attention_tiles.tile_for = lambda kernel, *_: Tile(*SQUARE[kernel], 4, 1)
  q, _, (part,), *rest = case(5, 1, 1, 2, 96, 16)
  segment = np.repeat([[1, 2, 0]], 32, 1).astype(np.int32)
  where = Where(jnp.array(np.tile(np.arange(32, dtype=np.int32), 3)[None]), segment)
  others = (segment != 2)[:, None, :, None]

  def run(hole):
    k, v = (jnp.where(others, hole, x) for x in (part.k, part.v))
    args = jnp.where(others[:, :, None], hole, q), where, [KV(k, v, where)], *rest
    return [x[..., 32:64, :] for x in gradients(kernels.attend, *args)]

  for got, want in zip(run(jnp.nan), run(0.0), strict=True):
    np.testing.assert_array_equal(got, want)
    assert np.abs(got).max() > 0
  out = kernels.attend(q, where, [part._replace(where=where)], *rest)
  np.testing.assert_array_equal(out[..., 64:, :], 0)  # padding
  print("what nobody sees is not loaded", flush=True)


def main():
  """All cases; what is wrong raises."""
  bridge.call = interpret
  jax.config.update("jax_disable_most_optimizations", True)
  np.seterr(over="ignore")  # exp2 of scores that are masked next
  check("causal, one row", case(0, 1, 2, 1, 64, 16))
  check("packed, ragged, padding", case(1, 2, 2, 1, 53, 16, padding=7))
  check("groups, head_dim 24", case(2, 1, 2, 3, 37, 24, padding=3))
  check("window", case(3, 2, 1, 2, 61, 16, window=5, padding=4))
  check("soft cap", case(4, 1, 2, 1, 50, 16, cap=2.0, padding=5))
  args = case(5, 1, 2, 2, 70, 32, window=9, cap=3.0, padding=5)
  check("window, soft cap, groups", args)
  check("chosen and constant tokens", case(6, 2, 2, 2, 90, 16, padding=9, parts=2))
  args = case(7, 1, 2, 1, 80, 16, window=11, cap=4.0, padding=6, parts=2)
  check("two parts, window, soft cap", args)
  # `attend` wants the tokens of its first part in their order.
  args = case(8, 2, 2, 1, 60, 16, window=20, padding=5, parts=2, order=False)
  check("no order", args, ours=False)
  args = case(9, 1, 1, 2, 100, 64, window=40, padding=8)
  check("oblong tiles", args, OBLONG)
  unseen()
  print("the kernels' numbers are right")


if __name__ == "__main__":
  main()
