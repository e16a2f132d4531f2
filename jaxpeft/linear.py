"""The one place where the model meets a weight.

A weight is an array [in, out], or a pytree node that stands for one and has

  matmul(x): x [..., in] -> [..., out] in x's dtype, without forming the weight if
    possible;
  dense(): the weight itself, as an array.

The transformer only calls these functions, so it knows no adapter and no quantizer.
Products have a custom backward pass, so `jax.jvp` and `jax.hessian` do not work through
them.
"""

import flax.linen as nn
import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_name


def is_node(w) -> bool:
  """Whether `w` is a node that stands for a weight; also for `is_leaf`."""
  return hasattr(w, "matmul")


def linear(x, w, name: str = "product"):
  """x [..., in] times the weight w [in, out], in x's dtype.

  The result is named, so that a remat policy can save it (`transformer.remat`).
  """
  return checkpoint_name(w.matmul(x) if is_node(w) else matmul(x, w), name)


@jax.custom_vjp
def matmul(x, w):
  """x [..., in] times an array [in, out], in x's dtype."""
  return x @ w.astype(x.dtype)


def _matmul_fwd(x, w):
  return matmul(x, w), (x, w)


def _matmul_bwd(residuals, g):
  x, w = residuals
  # XLA:CPU would fuse what computes g into a strided transpose of it, for each of the
  # two products again; the barrier has it computed once (benchmarks/train_step.py).
  g = lax.optimization_barrier(g)
  rows = tuple(range(x.ndim - 1))
  numbers = ((rows, rows), ((), ()))
  # A trained factor is float32 while activations may be bfloat16: its gradient is
  # summed in the factor's own type. The first operand gets transposed, so it is the
  # smaller one.
  smaller, other = (x, g) if x.shape[-1] <= g.shape[-1] else (g, x)
  dw = lax.dot_general(smaller, other, numbers, preferred_element_type=w.dtype)
  dw = dw if smaller is x else dw.T
  return lax.dot_general(g, w.astype(g.dtype), (((g.ndim - 1,), (1,)), ((), ()))), dw


matmul.defvjp(_matmul_fwd, _matmul_bwd)


def dense(w):
  """The weight as an array; for leaves that are not multiplied (norms, embeddings)."""
  return w.dense() if is_node(w) else w


class Weights(nn.Module):
  """Declares named weights of one place, and returns them in a dict.

  Attributes:
    shapes: pairs (name, shape).
    init: initializer for each; used only by `Module.init`, i.e. when pretraining.
  """

  shapes: tuple[tuple[str, tuple[int, ...]], ...]
  init: jax.nn.initializers.Initializer = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(self):
    return {name: weight(self, name, shape, self.init) for name, shape in self.shapes}


def weight(module, name: str, shape, init):
  """The parameter `name` of a linen module, whatever kind of weight stands there."""
  if module.has_variable("params", name):
    # `param` would compare shapes, and a weight node has none.
    return module.get_variable("params", name)
  return module.param(name, init, shape)
