"""Initializes an adapter for one weight, or layer by layer for a stack of weights."""

import functools

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import PartitionSpec

from jaxpeft.adapters import cores
from jaxpeft.adapters.base import Adapted
from jaxpeft.parallel import sharding


def initialize(adapter, key, w: tuple, path: str, stacked: bool, bar):
  """The `Adapted` node for a weight [in, out], or for a stack [L, in, out] of weights.

  Args:
    adapter: the method with its hyperparameters.
    key: PRNG key; for a stack, it is split into one key per layer.
    w: (weight,) or (weight, gradient), whichever the method's `init` takes after the
      key; each is [in, out], or [L, in, out] for a stack of L layers.
    path: the weight's path.
    stacked: True for a stack.
    bar: a `console.Bar`, which advances by one per layer.
  """
  mesh = sharding.current()
  if isinstance(jax.tree.leaves(w)[0], Tracer):
    init = jax.vmap(adapter.init) if stacked else adapter.init
    key = jax.random.split(key, w[0].shape[0]) if stacked else key
    frozen, theta = init(key, *w)
    return Adapted(frozen, theta, adapter)
  if mesh is not None:
    # Every process must run programs with collectives in the same order. Waiting here
    # until this one has finished prevents another one from overtaking it.
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
  """(frozen, theta) of a stack.

  Besides the result, the weights of a few layers are in memory: one for each thread.
  """
  depth = w[0].shape[0]
  keys = jax.random.split(key, depth)

  def one(i):
    w_i = [x[i] for x in w]
    frozen, theta = adapter.init(keys[i], *w_i)
    same = {name for name, x in frozen.items() if x is w_i[0]}  # the weight itself
    return ({k: x for k, x in frozen.items() if k not in same}, theta), same

  size = 4 * w[0].size // depth
  found = (
    cores.in_order(one, depth, size) if adapter.decomposes else map(one, range(depth))
  )
  parts, same = [], set()
  for part, same in found:  # noqa: B007
    parts.append(part)
    bar.update()
  frozen, theta = jax.tree.map(lambda *xs: jnp.stack(xs), *parts)
  # The given stack is reused, not copied.
  return frozen | dict.fromkeys(same, w[0]), theta


def _on_mesh(adapter, path: str, stacked: bool, mesh):
  """A jitted function (key, *w) -> sharded `Adapted`; devices share the layers' work.

  XLA cannot split a singular value decomposition over devices, so every device would
  decompose all layers. Instead, each device initializes its own share of the layers.

  If the method keeps the base's weight, frozen["w"] of the result is a placeholder,
  which the caller must replace with the weight it already has.

  Args:
    adapter: the method with its hyperparameters.
    path: the weight's path, which determines how its leaves are sharded.
    stacked: True for a stack of layers.
    mesh: the device mesh.
  """

  def local(keys, *w):
    return jax.lax.map(lambda args: adapter.init(*args), (keys, *w))

  @jax.jit
  def run(key, *w):
    if stacked:
      depth = w[0].shape[0]
      # Repeat layers until every device has equally many.
      layers = jnp.arange(depth + -depth % mesh.size) % depth
      keys, *w = jax.tree.map(
        lambda x: jnp.take(x, layers, axis=0), (jax.random.split(key, depth), *w)
      )
      over = PartitionSpec(mesh.axis_names)
      spread = jax.shard_map(local, mesh=mesh, in_specs=over, out_specs=over,
                             check_vma=False)  # fmt: skip
      frozen, theta = jax.tree.map(lambda x: x[:depth], spread(keys, *w))
    else:
      frozen, theta = adapter.init(key, *w)
    if adapter.keeps_base:  # leave the weight out, so that XLA does not move it
      frozen = {name: x for name, x in frozen.items() if name != "w"}
      frozen |= {"w": jnp.zeros(())} if _keeps(adapter, w, stacked) else {}
    return sharding.stored({path: Adapted(frozen, theta, adapter)})[path]

  return run


def _keeps(adapter, w, stacked: bool) -> bool:
  """True if the method's `init` returns a frozen leaf "w"."""
  own = jax.tree.map(lambda x: x[0], w) if stacked else w
  shapes = jax.eval_shape(functools.partial(adapter.init, jax.random.key(0)), *own)
  return "w" in shapes[0]
