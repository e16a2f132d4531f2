"""Initializes an adapter on one weight, or layer by layer on a stack of weights."""

import functools

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import PartitionSpec

from jaxpeft.adapters.base import Adapted
from jaxpeft.parallel import sharding


def start(adapter, key, w: tuple, path: str, stacked: bool, bar):
  """`Adapted` in place of a weight.

  Args:
    adapter: how.
    key: of its draws; each layer has its own.
    w: the weight, or a stack [L, in, out], and where `init` takes it the gradient.
    path: of the weight.
    stacked: whether there is an axis of layers.
    bar: counts layers that are done.
  """
  mesh = sharding.current()
  if isinstance(jax.tree.leaves(w)[0], Tracer):
    init = jax.vmap(adapter.init) if stacked else adapter.init
    key = jax.random.split(key, w[0].shape[0]) if stacked else key
    frozen, theta = init(key, *w)
    return Adapted(frozen, theta, adapter)
  if mesh is not None:
    # Waited for: processes must run programs with collectives in one order.
    node = jax.block_until_ready(_on_mesh(adapter, path, stacked, mesh)(key, *w))
    bar.update(w[0].shape[0] if stacked else 1)
    if adapter.keeps_base and "w" in node.frozen:
      node.frozen["w"] = w[0]
    return node
  if stacked:
    frozen, theta = _by_layer(adapter, key, w, bar)
    return Adapted(frozen, theta, adapter)
  bar.update()
  frozen, theta = adapter.init(key, *w)
  return Adapted(frozen, theta, adapter)


def _by_layer(adapter, key, w, bar):
  keys = jax.random.split(key, w[0].shape[0])
  layers, parts = list(w[0]), []
  for key_i, *w_i in zip(keys, layers, *w[1:], strict=True):
    parts.append(adapter.init(key_i, *w_i))
    bar.update()
  # A frozen leaf that is the weight itself stays the stack it came from: no copy.
  same = {
    name
    for name in parts[0][0]
    if all(p[0][name] is w_i for p, w_i in zip(parts, layers, strict=True))
  }
  frozen = {
    name: w[0]
    if name in same
    else jax.tree.map(lambda *xs: jnp.stack(xs), *[p[0][name] for p in parts])
    for name in parts[0][0]
  }
  return frozen, jax.tree.map(lambda *xs: jnp.stack(xs), *[p[1] for p in parts])


def _on_mesh(adapter, path: str, stacked: bool, mesh):
  """start(key, *w) -> `Adapted` in pieces; each device starts whole layers of its own.

  A singular value decomposition is not cut over devices: without this every one of
  them would do all. What is then still the base's weight is left to the caller.
  """

  def local(keys, *w):
    return jax.lax.map(lambda args: adapter.init(*args), (keys, *w))

  @jax.jit
  def run(key, *w):
    if stacked:
      depth = w[0].shape[0]
      layers = jnp.arange(depth + -depth % mesh.size) % depth  # some twice, to fit
      keys, *w = jax.tree.map(
        lambda x: jnp.take(x, layers, axis=0), (jax.random.split(key, depth), *w)
      )
      over = PartitionSpec(mesh.axis_names)
      spread = jax.shard_map(local, mesh=mesh, in_specs=over, out_specs=over,
                             check_vma=False)  # fmt: skip
      frozen, theta = jax.tree.map(lambda x: x[:depth], spread(keys, *w))
    else:
      frozen, theta = adapter.init(key, *w)
    if adapter.keeps_base:  # XLA then need not move it at all
      frozen = {name: x for name, x in frozen.items() if name != "w"}
      frozen |= {"w": jnp.zeros(())} if _keeps(adapter, w, stacked) else {}
    return sharding.stored({path: Adapted(frozen, theta, adapter)})[path]

  return run


def _keeps(adapter, w, stacked: bool) -> bool:
  """Whether the start has the base's weight among what is frozen."""
  own = jax.tree.map(lambda x: x[0], w) if stacked else w
  shapes = jax.eval_shape(functools.partial(adapter.init, jax.random.key(0)), *own)
  return "w" in shapes[0]
