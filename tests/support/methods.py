"""Every adapter with small options, and what tests of all of them share."""

import jax
import numpy as np

import jaxpeft
from jaxpeft import tree

LINEARS = "layers_.*/(attn|mlp)/.*"
ADAPTERS = {
  "full": jaxpeft.Full(),
  "lora": jaxpeft.LoRA(rank=4, alpha=8.0),
  "rslora": jaxpeft.LoRA(rank=4, alpha=8.0, rslora=True),
  "svft-plain": jaxpeft.SVFT(pattern="plain"),
  "svft-banded": jaxpeft.SVFT(pattern="banded", off_diagonals=3),
  "svft-random": jaxpeft.SVFT(pattern="random", off_diagonals=2),
  "svft-topk": jaxpeft.SVFT(pattern="topk", off_diagonals=2),
  "svft-gate": jaxpeft.SVFT(pattern="banded", off_diagonals=1, gate=True),
  "svft-rank": jaxpeft.SVFT(pattern="banded", off_diagonals=2, rank=9),
  "svft-keep": jaxpeft.SVFT(pattern="random", off_diagonals=2, keep_base=True),
  "dora": jaxpeft.DoRA(rank=4, alpha=8.0),
  "pissa": jaxpeft.PiSSA(rank=4, alpha=8.0),
  "pissa-fast": jaxpeft.PiSSA(rank=4, alpha=4.0, iterations=4),
  "milora": jaxpeft.MiLoRA(rank=4, alpha=8.0),
  "olora": jaxpeft.OLoRA(rank=4, alpha=8.0),
  "nora": jaxpeft.NoRA(rank=4, alpha=8.0),
  "lora-ga": jaxpeft.LoRAGA(rank=4, alpha=8.0),
  "lora-one": jaxpeft.LoRAOne(rank=4, alpha=8.0),
  "loraxs": jaxpeft.LoRAXS(rank=4, alpha=8.0),
  "loraxs-ref": jaxpeft.LoRAXS(rank=4, alpha=4.0, start="reference", iterations=10),
  "svf": jaxpeft.SVF(),
  "svf-keep": jaxpeft.SVF(keep_base=True),
  "svf-ref": jaxpeft.SVF(reference=True),
  "vera": jaxpeft.VeRA(rank=8),
  "ia3-output": jaxpeft.IA3(),
  "ia3-input": jaxpeft.IA3(on="input"),
}
# How far the reference's start is from W, as a share of W's norm; others are at W.
START = {"loraxs-ref": 3e-4, "svf-ref": 1e-2, "lora-one": 2e-2}
# These freeze what is left of W, which is rounded to W's dtype.
ROUNDED = ("pissa", "pissa-fast", "milora", "olora")
# One of each method and pattern: what compiles a whole model takes no variants.
METHODS = {(type(a), getattr(a, "pattern", "")): name for name, a in ADAPTERS.items()}


def weight(shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape) / np.sqrt(shape[0])


def start(adapter, w, seed=0):
  """`init`, with a gradient where the method takes one."""
  gradient = (weight(w.shape, seed=7),) if adapter.needs_gradient else ()
  return adapter.init(jax.random.key(seed), w, *gradient)


def adapt(params, adapter):
  """`jaxpeft.adapt` of all projections, with gradients of noise."""
  leaves = tree.flatten(params)
  gradients = {path: weight(x.shape, seed=7) for path, x in leaves.items()}
  return jaxpeft.adapt(params, {LINEARS: adapter}, jax.random.key(0), gradients)


def perturbed(theta, seed=1, scale=0.3):
  """theta moved by noise, so that nothing is at its special start."""
  leaves, structure = jax.tree.flatten(theta)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  moved = [
    x + scale * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)
  ]
  return jax.tree.unflatten(structure, moved)


def one_batch(rows=4, length=24):
  rng = np.random.default_rng(0)
  tokens = rng.integers(3, 400, (1, rows, length)).astype(np.int32)
  ones = np.ones((1, rows, length))
  return dict(
    tokens=tokens,
    targets=np.roll(tokens, -1, 2),
    weights=ones.astype(np.float32),
    position=np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape),
    segment=ones.astype(np.int32),
  )
