"""4-bit products lowered and compiled for a GPU or TPU, without one; for the tests.

  python tests/support/kernel_lowering.py lower | compile cuda | tpu

For CUDA needs jax-triton and JAX's plugin, and `compile` XLA:GPU's wheel; for TPUs only
`compile` needs anything, libtpu.
"""

import dataclasses
import itertools
import re
import sys
import types

import jax
import jax.numpy as jnp
import jaxpeft_kernels
import numpy as np
from jaxpeft_kernels import nf4_pallas

import jaxpeft
from jaxpeft.planning import targets
from jaxpeft.quantization import nf4, nf4_matmul

WHAT, PLATFORM = sys.argv[1:]
CALL = dict(cuda="triton_kernel_call", tpu="tpu_custom_call")[PLATFORM]
TARGET = dict(cuda="h100x2", tpu="v5e:2x2")[PLATFORM]


def kernels(f, *args, platform: str = PLATFORM) -> int:
  """Calls of kernels in f's code for a platform."""
  # A function of its own, which jit has no trace of yet.
  lowered = (
    jax.jit(lambda *args: f(*args)).trace(*args).lower(lowering_platforms=(platform,))
  )
  return lowered.as_text().count(f"@{CALL}")


def stack(layers: int, inputs: int, outputs: int):
  """A stack of layers of NF4 weights of random bits, in bfloat16."""
  draw = np.random.default_rng(inputs)
  scales = outputs * inputs // nf4.BLOCK
  return nf4.NF4(
    codes=draw.integers(0, 256, (layers, outputs, inputs // 2), np.uint8),
    absmax=draw.integers(0, 256, (layers, outputs, inputs // nf4.BLOCK), np.uint8),
    nested=np.full((layers, -(-scales // nf4.NESTED)), 1 / inputs, np.float32),
    offset=np.full(layers, 2 / inputs, np.float32),
    dtype=jnp.dtype("bfloat16"),
  )


def lower():
  """Kernels are in one platform's code only, under grad, scan, vmap, remat; by rows."""
  up, down = stack(3, 512, 768), stack(3, 768, 512)
  x = jnp.ones((2, 5, 512), jnp.bfloat16)

  def loss(x, weights):
    @jax.checkpoint
    def layer(x, weights):
      up, down = weights
      return jax.vmap(lambda x: down.matmul(jnp.tanh(up.matmul(x))))(x), None

    return jnp.square(jax.lax.scan(layer, x, weights)[0]).astype(jnp.float32).sum()

  gradient = jax.grad(loss)
  assert kernels(gradient, x, (up, down)) >= 4
  assert kernels(gradient, x, (up, down), platform="cpu") == 0
  # Here the plain branch runs: it is the same as with no kernels at all.
  got = jax.jit(gradient)(x, (up, down))
  available, nf4_matmul.kernels_for = nf4_matmul.kernels_for, lambda *_: {}
  assert kernels(gradient, x, (up, down)) == 0
  np.testing.assert_array_equal(got, jax.jit(gradient)(x, (up, down)))
  nf4_matmul.kernels_for = available

  # A batch is rows: when there are too many, the weight is dequantized. The kernels'
  # results tell them apart: [splits, M, N] or [M, N], and [N, K].
  few, many = jnp.ones((4, 8, 512), jnp.bfloat16), jnp.ones((20, 8, 512), jnp.bfloat16)
  for x, fused in ((few, True), (many, False)):
    f = jax.vmap(lambda x: up[0].matmul(x))
    text = jax.jit(f).trace(x).lower(lowering_platforms=(PLATFORM,)).as_text()
    call = next(line for line in text.splitlines() if f"@{CALL}" in line)
    assert ("tensor<768x512xbf16>" in call.rsplit("->")[-1]) != fused, call
    np.testing.assert_allclose(
      np.asarray(f(x), np.float32), np.asarray(x @ up[0].dense(), np.float32), rtol=0.02
    )

  # A stack of weights is a loop of the products, and of one dequantization.
  xs = jnp.ones((3, 5, 512), jnp.bfloat16)
  products = jax.vmap(lambda w, x: w.matmul(x))
  assert kernels(products, up, xs) == 1
  np.testing.assert_array_equal(
    jax.jit(products)(up, xs),
    jnp.stack([w.matmul(x) for w, x in zip(up, xs, strict=True)]),
  )
  assert kernels(lambda w: w.dense(), up) == 1

  # Not from the codes: weights rounded to bfloat16 first, for float32 rows.
  assert kernels(lambda x: up[0].matmul(x), jnp.ones((5, 512), jnp.float32)) == 1
  # No whole groups of 128 inputs, so plain JAX.
  assert kernels(stack(1, 192, 64)[0].matmul, jnp.ones((5, 192), jnp.bfloat16)) == 0
  print("lowered as meant")


def on_a_mesh():
  """The same numbers however weight and rows are cut; a shard_map calls the kernel."""
  mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
  spec = jax.sharding.PartitionSpec
  product = jax.jit(lambda w, x: w.matmul(x))

  def place(array, *axes):
    return jax.device_put(array, jax.sharding.NamedSharding(mesh, spec(*axes)))

  cuts = (None, None), ("d", None), (None, "d")
  # Of 512 inputs each of 4 devices has a whole group; of the others a part of one.
  for inputs, of_weight, of_x in itertools.product((512, 256, 128), cuts, cuts):
    w = dataclasses.replace(stack(1, inputs, 768)[0], dtype=jnp.dtype("float32"))
    x = jax.random.normal(jax.random.key(0), (4, inputs))
    want = np.asarray(x, np.float64) @ np.asarray(w.dense(), np.float64)
    even = inputs > 128 or not of_weight[1]  # or two scales are for four devices
    parts = [place(w.codes, *of_weight), place(w.absmax, *of_weight if even else ())]
    rest = [place(getattr(w, name)) for name in ("nested", "offset")]
    for rows in (x, x[:, None], jnp.tile(x, (20, 1))):  # the last are not few
      rows = place(rows, of_x[0], *(None,) * (rows.ndim - 2), of_x[1])
      got = product(nf4.NF4(*parts, *rest, w.dtype), rows)
      got = np.asarray(got).reshape(-1, *want.shape)
      np.testing.assert_allclose(got, np.broadcast_to(want, got.shape), atol=1e-3)

  w, x = stack(1, 512, 768)[0], jnp.ones((4, 512), jnp.bfloat16)
  assert kernels(product, w, x) == 1
  own = jax.shard_map(
    lambda w, x: w.matmul(x),
    mesh=mesh,
    in_specs=(spec(), spec("d")),
    out_specs=spec("d"),
  )
  assert kernels(own, w, x) == 1
  print("the same on a mesh")


def parts():
  """Each of two devices works on its half of a weight, on GPUs by the kernels."""
  devices = np.array(targets.devices(TARGET)[:2])
  mesh = jax.sharding.Mesh(devices, ("d",))
  placed, spec = jax.sharding.NamedSharding, jax.sharding.PartitionSpec
  inputs, outputs = 256, 384
  for rows, axes in itertools.product((80, 16), (("d", None), (None, "d"))):
    w = stack(1, inputs, outputs)[0]
    cut, whole = placed(mesh, spec(*axes)), placed(mesh, spec())
    places = nf4.NF4(cut, cut, whole, whole, w.dtype)
    args = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), w, places
    )
    x = jax.ShapeDtypeStruct((rows, inputs), jnp.bfloat16, sharding=whole)
    text = jax.jit(lambda w, x: w.matmul(x)).lower(args, x).compile().as_text()
    shape = (outputs // 2, inputs) if axes[0] else (outputs, inputs // 2)
    if PLATFORM == "cuda":
      call = next(line for line in text.splitlines() if CALL in line)
      few = f"{rows},{shape[0]}]"  # products formed from the codes
      assert (few if rows == 16 else f"bf16[{shape[0]},{shape[1]}]") in call, call
      assert f"u8[{shape[0]},{shape[1] // 2}]" in call, call
    assert ("all-reduce" in text) == (axes[0] is None)
    assert not re.search(r"all-gather[^(]*\([^)]*u8", text)
  print("each its own part")


def compile():
  """With the barriers a step of QLoRA keeps no dequantized weight; without, all."""
  layers, width, rows = 8, 1024, 80  # rows: not from the codes
  lora = jaxpeft.LoRA(rank=8)
  mesh = jax.sharding.Mesh(np.array(targets.devices(TARGET)[:1]), ("device",))
  placed = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

  def start():
    base = list(stack(layers, width, width))
    return base, [lora.init(jax.random.key(0), w)[1] for w in base]

  base, theta = jax.eval_shape(start)
  x = jax.ShapeDtypeStruct((rows, width), jnp.bfloat16)

  def loss(theta, base, x):
    for w, part in zip(base, theta, strict=True):
      x = jnp.tanh(lora.apply(x, dict(w=w), part))
    return jnp.square(x).astype(jnp.float32).mean()

  def step(theta, base, x):
    gradient = jax.grad(loss)(theta, base, x)
    return jax.tree.map(lambda t, g: t - 0.1 * g, theta, gradient)

  args = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), (theta, base, x)
  )

  def temporaries():
    compiled = jax.jit(lambda *args: step(*args)).lower(*args).compile()
    assert CALL in compiled.as_text()
    return compiled.memory_analysis().temp_size_in_bytes

  with_them = temporaries()
  nf4.lax = types.SimpleNamespace(optimization_barrier=lambda x: x)
  without = temporaries()
  dense = layers * 2 * width**2
  print(f"with barriers {with_them:,} bytes, without {without:,}, dense {dense:,}")
  assert with_them < without / 2


if __name__ == "__main__":
  targets.prepare(TARGET)
  jax.config.update("jax_num_cpu_devices", 4)
  if PLATFORM == "tpu":  # to lower for it takes no libtpu
    jaxpeft_kernels.by_platform = lambda: dict(tpu=nf4_pallas)
  if WHAT == "lower":
    lower()
    on_a_mesh()
  else:
    compile()
    parts()
