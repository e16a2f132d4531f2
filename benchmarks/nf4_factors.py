"""Error and bytes of storing the singular vectors U and Vt in NF4.

  python benchmarks/nf4_factors.py [--size 4096] [--run runs/svft_banded]

"error" is ||dW' - dW|| / ||dW||, where dW is what a method adds to W, and dW' is what
it adds for the same theta when the factors are in NF4. It does not depend on the scale
of theta, which is drawn from a normal distribution, or, with --run, comes from a run of
configs/svft_banded.py or svf.py that trained with exact factors.
"defect" is ||U' U - 1|| / sqrt(k), which is 0 for exact factors. Training uses the
quantized factors, so neither number is an error of a trained model.
"MB" are for one weight: W, and U with Vt, each in bfloat16 and in NF4. The large weight
is random with singular values i^-0.7. Errors on the embedded model are means over its
28 weights.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxpeft
from jaxpeft import adapters, experiment
from jaxpeft.adapters import frozen_factors, svd
from jaxpeft.linear import dense
from jaxpeft.quantization import nf4
from jaxpeft.training import workdir as workdirs

METHODS = {
  "SVFT banded d=8": jaxpeft.SVFT("banded", off_diagonals=8),
  "SVF": jaxpeft.SVF(),
  "LoRA-XS r=64": jaxpeft.LoRAXS(rank=64, alpha=64.0),
}


def synthetic(size: int):
  """(u, s, vt) of a random weight [size, size]."""
  rng = np.random.default_rng(0)
  u, v = (np.linalg.qr(rng.normal(size=(size, size)).astype("f"))[0] for _ in range(2))
  return jnp.asarray(u), jnp.arange(1.0, size + 1) ** -0.7, jnp.asarray(v.T)


def random_theta(adapter, k: int):
  """A theta of normal random numbers; those of SVF's z have mean 1."""
  normal = functools.partial(jax.random.normal, jax.random.key(1))
  if isinstance(adapter, jaxpeft.SVF):
    return dict(z=1 + normal((k,)))
  if isinstance(adapter, jaxpeft.LoRAXS):
    return dict(r=normal((adapter.rank, adapter.rank)))
  return dict(m=normal((adapter.entries(k),)))


@functools.partial(jax.jit, static_argnums=0)
def measure(adapter, u, s, vt, theta):
  """(error of dW, defect of U) of one weight."""
  rank = getattr(adapter, "rank", None)
  left = u[:, :rank] * s[:rank] if isinstance(adapter, jaxpeft.LoRAXS) else u[:, :rank]

  def change(quantize):
    frozen = frozen_factors.freeze(left, vt[:rank], jnp.float32, quantize)
    nothing = jnp.zeros((u.shape[0], vt.shape[1]))  # in place of W, to get dW
    return adapter.merge(frozen | dict(s=s, w=nothing), theta)

  want, got = change(""), change("nf4")
  q = nf4.quantize(u[:, :rank]).dense()
  gram = q.T @ q - jnp.eye(q.shape[1])
  norm = jnp.linalg.norm
  return norm(got - want) / norm(want), norm(gram) / jnp.sqrt(q.shape[1])


def sizes(adapter, shape):
  """Yields the bytes of W, and of U with Vt, each in bfloat16 and in NF4."""
  k = getattr(adapter, "rank", None) or min(shape)
  weights = [shape], [(shape[0], k), (k, shape[1])]
  for shapes in weights:
    of = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in shapes]
    yield 2 * sum(x.size for x in of)
    held = jax.tree.leaves([jax.eval_shape(nf4.quantize, x) for x in of])
    yield sum(x.size * x.dtype.itemsize for x in held)


def embedded():
  """Yields the weights of the embedded model's projections."""
  params = jaxpeft.load("embedded", dtype="float32").params
  for path, stack in adapters.nodes(params).items():
    if nf4.takes(path):
      yield from stack


def trained(directory: str):
  """Yields (adapter, weight of the base, theta) of each weight that a run adapted."""
  base = adapters.nodes(experiment.read_base(workdirs.read_config(directory)).params)
  for path, node in adapters.nodes(experiment.load_run(directory).params).items():
    if adapters.is_adapted(node):
      for i, w in enumerate(base[path]):
        yield node.adapter, dense(w), jax.tree.map(lambda x, i=i: x[i], node.theta)


def line(weight: str, method: str, found, mb=()):
  """Prints one row of the table, with the means of `found`."""
  error, defect = np.mean(found, 0)
  shown = "".join(f"{x / 1e6:>9.2f}" for x in mb)
  print(f"{weight:<18}{method:<18}{error:>7.1%}{defect:>8.3f}{shown}", flush=True)


def main():
  """Measures, and prints one table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--size", type=int, default=4096)
  parser.add_argument("--run", default="")
  args = parser.parse_args()
  print(f"{'weight':<18}{'method':<18}{'error':>7}{'defect':>8}", end="")
  print("".join(f"{name:>9}" for name in ("W, MB", "nf4", "U+Vt, MB", "nf4")))
  shape = (args.size, args.size)
  large = synthetic(args.size)
  some = [svd.svd(w) for w in embedded()]
  for name, adapter in METHODS.items():
    found = measure(adapter, *large, random_theta(adapter, args.size))
    line(f"{args.size} x {args.size}", name, [found], sizes(adapter, shape))
    thetas = [random_theta(adapter, len(s)) for _, s, _ in some]
    found = [measure(adapter, *f, t) for f, t in zip(some, thetas, strict=True)]
    line("embedded", name, found)
  if args.run:
    found = [measure(a, *svd.svd(w), theta) for a, w, theta in trained(args.run)]
    line("embedded", "of the run", found)


if __name__ == "__main__":
  main()
