"""A small model whose axes 8 devices can cut, its adapters, and meshes to cut it."""

import dataclasses
import functools

import jax
import numpy as np

import jaxpeft
from jaxpeft import model, tree
from jaxpeft.parallel import sharding
from jaxpeft.quantization import nf4
from jaxpeft.transformer.config import ModelConfig
from jaxpeft.transformer.decoder import Transformer
from tests.support.methods import LINEARS

METHODS = {
  "LoRA": jaxpeft.LoRA(),
  "SVFT": jaxpeft.SVFT(),
  "SVFT-nf4": jaxpeft.SVFT(quantize="nf4"),
  "LoRA-XS": jaxpeft.LoRAXS(rank=16),
  "PiSSA": jaxpeft.PiSSA(rank=8),
}
CONFIG = ModelConfig(
  family="llama", vocab_size=64, width=128, depth=2, heads=8, kv_heads=8, head_dim=16,
  ff=256, max_positions=128,
)  # fmt: skip


@functools.cache
def adapted(method, quantize=None, remat="products", vocab_size=64, match=LINEARS):
  """(transformer, adapted params) on one device."""
  config = dataclasses.replace(CONFIG, vocab_size=vocab_size)
  transformer = Transformer(config, remat=remat)
  params, rule = model.init(transformer, 0), METHODS[method]
  if quantize and method == "PiSSA":  # it quantizes what is left of the base
    rule = dataclasses.replace(rule, quantize=quantize)
  elif quantize:
    params = nf4.quantize_tree(params)
  return transformer, jaxpeft.adapt(params, {match: rule}, jax.random.key(0))


@functools.cache
def trained(method, quantize=None, vocab_size=64, match=LINEARS):
  """The same, with a theta that changes what the model says."""
  transformer, params = adapted(method, quantize, vocab_size=vocab_size, match=match)
  theta, frozen = tree.partition(params, tree.trainable_mask(params))
  rng = np.random.default_rng(0)
  theta = jax.tree.map(
    lambda x: (np.asarray(x) + 0.03 * rng.normal(size=x.shape)).astype("f4"), theta
  )
  return transformer, tree.combine(theta, frozen)


def make_mesh(sizes, sequence=False):
  named = dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
  return sharding.named(named, sequence, jax.devices()[: np.prod(sizes)])
