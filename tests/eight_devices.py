"""Run by test_adapters.py with 8 host devices: every adapter, sharded by its dims."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from test_adapters import ADAPTERS, perturbed, weight

MESH = Mesh(np.array(jax.devices()).reshape(2, 4), ("x", "y"))


def place(leaf, axes):
  """A leaf with its input axis over 2 and its output axis over 4 devices."""
  names = [dict(i="x", o="y").get(letter) for letter in axes]
  return jax.device_put(leaf, NamedSharding(MESH, PartitionSpec(*names)))


def main():
  """Outputs and gradients must equal those of one device, and leaves stay sharded."""
  assert len(jax.devices()) == 8
  for name, adapter in ADAPTERS.items():
    frozen, theta = adapter.init(jax.random.key(0), weight((24, 40)))
    theta = perturbed(theta)
    x = jax.random.normal(jax.random.key(2), (16, 24))

    def value(theta, frozen, x, adapter=adapter):
      y = adapter.apply(x, frozen, theta)
      return (y**2).mean(), y

    step = jax.jit(jax.value_and_grad(value, has_aux=True))
    (_, want), want_grad = step(theta, frozen, x)
    spread = [
      {k: place(leaf, adapter.dims[k]) for k, leaf in part.items()}
      for part in (theta, frozen)
    ]
    rows = jax.device_put(x, NamedSharding(MESH, PartitionSpec("x")))
    (_, got), grad = step(*spread, rows)
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max(), err_msg=name)
    for k, leaf in grad.items():
      limit = 1e-4 * np.abs(want_grad[k]).max()
      np.testing.assert_allclose(leaf, want_grad[k], atol=limit, err_msg=f"{name} {k}")
    wide = [k for k, axes in adapter.dims.items() if set(axes) & set("io")]
    held = {k: x for part in spread for k, x in part.items()}
    for k in wide:
      if k in held:
        assert held[k].addressable_shards[0].data.size < held[k].size, (name, k)
    print(name)


if __name__ == "__main__":
  main()
