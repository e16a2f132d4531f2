"""The one place where the model meets a weight.

A weight is either an array [in, out] or a weight node: a pytree node that represents
such an array and has two methods,

  matmul(x): x [..., in] -> [..., out] in x's dtype, if possible without forming the
    dense weight;
  dense(): the dense weight, an array.

The transformer uses weights only through this module, so it contains no code for
adapters or quantizers. Matrix products have a custom backward pass, so `jax.jvp` and
`jax.hessian` do not work through them.
"""

import flax.linen as nn
import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_name


def is_node(w) -> bool:
  """Whether `w` is a weight node; usable as `is_leaf`."""
  return hasattr(w, "matmul")


def linear(x, w, name: str = "product"):
  """x [..., in] times the weight w [in, out], in x's dtype.

  Args:
    x: float[..., in].
    w: an array [in, out] or a weight node.
    name: labels the result, so that a remat policy can save it (`transformer.remat`).
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
  rows = tuple(range(x.ndim - 1))
  numbers = ((rows, rows), ((), ()))
  # preferred_element_type: theta is float32 even where x and g are bfloat16, and its
  # gradient must be float32, too; a bfloat16 result would already be rounded.
  # XLA transposes the first operand, so the smaller one goes first.
  smaller, other = (x, g) if x.shape[-1] <= g.shape[-1] else (g, x)
  dw = lax.dot_general(smaller, other, numbers, preferred_element_type=w.dtype)
  dw = dw if smaller is x else dw.T
  return lax.dot_general(g, w.astype(g.dtype), (((g.ndim - 1,), (1,)), ((), ()))), dw


matmul.defvjp(_matmul_fwd, _matmul_bwd)


def matmul_transposed(x, w):
  """x [..., in] times the transpose of the array w [out, in], in x's dtype.

  Writing `x @ w.T` in a loop instead would make XLA:CPU copy w transposed, which for a
  tied embedding is the largest array of a small model.
  """
  axes = ((x.ndim - 1,), (1,)), ((), ())
  return lax.dot_general(x, w.astype(x.dtype), axes)


def dense(w):
  """The weight as an array, for uses other than a product (norms, embeddings)."""
  return w.dense() if is_node(w) else w


class Weights(nn.Module):
  """Declares the weights of one module and returns them as {name: weight}.

  Attributes:
    shapes: pairs (name, shape).
    init: initializer of every weight; used only by `Module.init`, for random models.
  """

  shapes: tuple[tuple[str, tuple[int, ...]], ...]
  init: jax.nn.initializers.Initializer = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(self):
    return {name: weight(self, name, shape, self.init) for name, shape in self.shapes}


def weight(module, name: str, shape, init):
  """The parameter `name` of a linen module: an array or a weight node."""
  if module.has_variable("params", name):
    # `Module.param` would compare shapes, which fails for weight nodes.
    return module.get_variable("params", name)
  return module.param(name, init, shape)
