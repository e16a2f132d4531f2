"""Checks the numbers of products with NF4 weights on a GPU, and then times them.

  python kernels/bench/nf4.py --out=nf4.json       (one NVIDIA GPU)
  python kernels/bench/nf4.py --rehearse           (a CPU; its times mean nothing)

The columns, in microseconds per product, are:

  codes           our kernel that multiplies directly from the codes
  dequantize      our kernel that dequantizes, followed by XLA's product
  plain           the same in plain JAX
  bfloat16        XLA's product with a bfloat16 weight
  bitsandbytes    its product, if it is installed
  floor           the least time that the bytes moved and the operations can take
  floor bfloat16  the same with a bfloat16 weight

A star marks the column that jaxpeft chooses. Products take turns on 8 copies of the
weight, so that none is read from a cache. The timed program is one jitted loop over
many products (for bitsandbytes, one CUDA graph). JSON is written after every row.
"""

import contextlib
import functools
import json
import os
import pathlib
import statistics
import sys
import time
import types
from unittest import mock

os.environ.setdefault(
  "XLA_PYTHON_CLIENT_PREALLOCATE", "false"
)  # leave memory for bitsandbytes

import jax
import jax.numpy as jnp
import jaxpeft_kernels
import numpy as np
from absl import app, flags
from jax import lax

from jaxpeft import cli
from jaxpeft.errors import InputError
from jaxpeft.quantization import nf4, nf4_matmul

flags.DEFINE_bool("rehearse", False, "Tiny sizes in plain JAX, on any machine.")
flags.DEFINE_string("out", "", "JSON file to write.")
flags.DEFINE_list("shapes", "4096x4096,4096x11008,4096x14336", "Inputs x outputs.")
flags.DEFINE_list("rows", "1,4,16,64,256,1024,2048,8192", "Rows of x, a list.")
flags.DEFINE_integer("copies", 8, "Copies of each weight, so that no cache holds them.")
flags.DEFINE_float("tb_s", 3.35, "Memory bandwidth in TB/s.")
flags.DEFINE_float("tflops", 989.0, "Peak of bfloat16 products in TFLOP/s.")

MOST_FUSED_ROWS = 1024  # the kernel from codes is not timed with more rows
COLUMNS = ("codes", "dequantize", "plain", "bfloat16", "bitsandbytes")


def product(name: str, backward: bool, kernels):
  """A function (x, weight) -> product for a column of the table.

  Args:
    name: the column. The weight is an array for "bfloat16", otherwise (codes, scales).
    backward: whether x is the gradient of the outputs, multiplied by W.T.
    kernels: an object with `matmul` and `dequantize`.
  """
  if name == "bfloat16":
    return (lambda g, w: g @ w.T) if backward else (lambda x, w: x @ w)
  if name == "codes":
    return lambda x, w: kernels.matmul(x, *w, nf4.CODE)
  f = nf4_matmul.backward if backward else nf4_matmul.dequantized

  def dequantized(x, w):
    off = mock.patch.object(nf4_matmul, "kernels_for", return_value={})
    with off if name == "plain" else contextlib.nullcontext():
      return f(x, *w, x.dtype)

  return dequantized


def loop(f, weights, x, times: int):
  """Multiplies x by each of the weights, `times` times; returns the last products."""

  def body(_, carry):
    x, ys = carry[0], []
    for w in weights:
      # As in training, every product must dequantize its weight again. Without these
      # barriers XLA would share dequantized weights or hoist them out of the loop.
      x, w = lax.optimization_barrier((x, w))
      x, y = lax.optimization_barrier((x, f(x, w)))
      ys.append(y)
    return x, ys

  shape = jax.eval_shape(f, x, weights[0])
  start = [jnp.zeros(shape.shape, shape.dtype) for _ in weights]
  return lax.fori_loop(0, times, body, (x, start))


def microseconds(run, tiny: bool) -> float:
  """Microseconds per product, the median of 7 measurements.

  Args:
    run: a function of `times`, which computes that many products with each copy.
    tiny: measure only once, with times = 1.
  """
  times = 1
  run(times)
  while not tiny and times < 4096:
    start = time.perf_counter()
    run(times)
    if time.perf_counter() - start > 0.1:
      break
    times *= 2
  taken = []
  for _ in range(1 if tiny else 7):
    start = time.perf_counter()
    run(times)
    taken.append((time.perf_counter() - start) / times / flags.FLAGS.copies * 1e6)
  return statistics.median(taken)


def ours(name, backward, kernels, weights, x, tiny) -> float:
  """Microseconds per product in JAX; arguments as in `product` and `microseconds`."""
  f = product(name, backward, kernels)
  compiled = jax.jit(functools.partial(loop, f))
  return microseconds(
    lambda times: jax.block_until_ready(compiled(weights, x, times)), tiny
  )


def theirs(inputs, outputs, rows, backward, tiny) -> float | None:
  """Microseconds per product of bitsandbytes, or None if it is not installed."""
  try:
    import bitsandbytes as bnb
    import torch
  except ImportError:
    return None
  device = "cpu" if tiny else "cuda"
  options = dict(device=device, dtype=torch.bfloat16)
  x = torch.randn(rows, outputs if backward else inputs, **options)
  weights = [
    bnb.functional.quantize_4bit(
      torch.randn(outputs, inputs, **options),
      quant_type="nf4",
      compress_statistics=True,
    )
    for _ in range(flags.FLAGS.copies)
  ]

  def products():
    for w, state in weights:
      if backward:  # as bitsandbytes' autograd does
        x @ bnb.functional.dequantize_4bit(w, state)
      else:
        bnb.matmul_4bit(x, w.t(), state)

  with torch.no_grad():
    products()
    if tiny:
      return microseconds(lambda times: [products() for _ in range(times)], tiny)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
      products()

  def replay(times):
    for _ in range(times):
      graph.replay()
    torch.cuda.synchronize()

  return microseconds(replay, tiny)


def floor(inputs, outputs, rows, bits: float) -> float:
  """The least microseconds for the bytes of weight, x and y, or for the operations."""
  f = flags.FLAGS
  moved = inputs * outputs * bits / 8 + 2 * rows * (inputs + outputs)
  return max(moved / f.tb_s, 2 * rows * inputs * outputs / f.tflops) / 1e6


def quantized(seed: int, inputs: int, outputs: int):
  """(codes, scales, bfloat16 weight [inputs, outputs]) of a random weight."""
  w = jax.random.normal(jax.random.key(seed), (inputs, outputs), jnp.bfloat16)
  node = nf4.quantize(w)
  return node.codes, nf4.scales(node), w


def check(kernels, tiny: bool):
  """Compares dequantized weights bit for bit, and products with float64.

  Raises:
    InputError: a weight or a product is wrong.
  """
  inputs = 256 if tiny else 4096
  for outputs in (72,) if tiny else (1000, 4096):
    codes, scales, _ = quantized(0, inputs, outputs)
    numbers = nf4.CODE[np.asarray(nf4.unpack(codes))].reshape(outputs, -1, nf4.BLOCK)
    numbers = (numbers * np.asarray(scales)[..., None]).reshape(outputs, inputs)
    for dtype, limit in (("bfloat16", 2**-8), ("float16", 2**-11), ("float32", 1e-5)):
      want = numbers.astype(jnp.dtype(dtype))
      got = jax.jit(functools.partial(kernels.dequantize, dtype=dtype))(
        codes, scales, nf4.CODE
      )
      if not np.array_equal(np.asarray(got), want):
        raise InputError(f"dequantized {dtype} [{outputs}, {inputs}] has wrong bits")
      for rows in (5,) if tiny else (1, 5, 16, 40, 64, 100, 300):
        x = jax.random.normal(jax.random.key(rows), (rows, inputs), dtype)
        y = np.asarray(jax.jit(kernels.matmul)(x, codes, scales, nf4.CODE), np.float64)
        exact = np.asarray(x, np.float64) @ want.astype(np.float64).T
        error = np.linalg.norm(y - exact) / np.linalg.norm(exact)
        if not error < limit:
          raise InputError(f"{dtype} M={rows} N={outputs}: error {error:.1e} > {limit}")
  print("numbers: dequantized bit for bit, products within rounding error of float64")


def row(shape, rows, backward, kernels, tiny) -> dict:
  """One row of the table, as a dict."""
  inputs, outputs = shape
  made = [quantized(i, inputs, outputs) for i in range(flags.FLAGS.copies)]
  packed, dense = [w[:2] for w in made], [w[2] for w in made]
  width = outputs if backward else inputs
  x = jax.random.normal(jax.random.key(1), (rows, width), jnp.bfloat16)
  out = dict(
    product="dx" if backward else "y", inputs=inputs, outputs=outputs, rows=rows
  )
  for name in COLUMNS[:-1]:
    skip = name == "codes" and (backward or rows > MOST_FUSED_ROWS)
    weights = dense if name == "bfloat16" else packed
    out[name] = None if skip else ours(name, backward, kernels, weights, x, tiny)
  out["bitsandbytes"] = theirs(inputs, outputs, rows, backward, tiny)
  few = rows <= nf4_matmul.FUSED_ROWS and not backward
  out["chosen"] = "codes" if few else "dequantize"
  # 4 bits per number and a float32 scale per 64 numbers make 4.5 bits.
  out["floor"], out["floor_bfloat16"] = (
    floor(inputs, outputs, rows, bits) for bits in (4.5, 16)
  )
  return out


def show(row: dict):
  """Prints one row of the table."""
  print(
    f"{row['product']:>3}{row['inputs']:>7}{row['outputs']:>7}{row['rows']:>6}", end=""
  )
  for name in (*COLUMNS, "floor", "floor_bfloat16"):
    cell = "-" if row[name] is None else f"{row[name]:.1f}"
    print(f"{cell + '*' * (name == row['chosen']):>15}", end="")
  print(flush=True)


def main(argv):
  """Checks, then prints the table."""
  if len(argv) > 1:
    raise InputError(f"unknown argument {argv[1]}")
  f = flags.FLAGS
  shapes = [tuple(map(int, s.split("x"))) for s in f.shapes]
  rows = [int(m) for m in f.rows]
  device = jax.devices()[0]
  if f.rehearse:
    kernels = types.SimpleNamespace(
      dequantize=jaxpeft_kernels.dequantize_ref, matmul=jaxpeft_kernels.matmul_ref
    )
    shapes, rows = [(256, 128)], [16]
  elif device.platform != "gpu":
    raise InputError(f"no NVIDIA GPU, JAX has {device}; --rehearse runs on a CPU")
  elif "cuda" not in jaxpeft_kernels.by_platform():
    raise InputError("jax-triton cannot be imported: pip install -e '.[gpu]'")
  else:
    kernels = jaxpeft_kernels.by_platform()["cuda"]
  check(kernels, f.rehearse)
  print(f"{device.device_kind}, jax {jax.__version__}; microseconds per product")
  print(f"{'':>3}{'in':>7}{'out':>7}{'M':>6}", end="")
  print("".join(f"{n:>15}" for n in (*COLUMNS, "floor", "floor bfloat16")))
  table = []
  for backward in (False, True):
    for shape in shapes:
      for m in rows:
        table.append(row(shape, m, backward, kernels, f.rehearse))
        show(table[-1])
        if f.out:
          result = dict(device=device.device_kind, jax=jax.__version__, us=table)
          pathlib.Path(f.out).write_text(json.dumps(result, indent=1) + "\n")


def _run(argv):
  with cli.one_clear_line():
    main(argv)


if __name__ == "__main__":
  sys.exit(app.run(_run))
