"""The head of a reward model: one number for a hidden state, trained in full.

It is the entry "score", [D, 1], of the parameter tree. The transformer does not use it,
and adapters are for the other weights.
"""

import jax.numpy as jnp

from jaxpeft import adapters
from jaxpeft.errors import InputError
from jaxpeft.linear import dense, linear

HEAD = "score"


def score(params, hidden):
  """float32[...]: the head on hidden states [..., D], in float32.

  Raises:
    InputError: the parameters have no head.
  """
  if HEAD not in params:
    raise InputError(
      f"the model has no reward head ({HEAD!r} in its parameters); train it with "
      "objective.name='reward', or load a reward model"
    )
  return linear(hidden.astype(jnp.float32), params[HEAD])[..., 0]


def added(params):
  """The parameters with a head; one of zeros if they have none, so that rewards are 0.

  Args:
    params: a parameter tree, not adapted.
  """
  if HEAD in params:
    return params
  (width,) = params["final_norm"].shape
  return params | {HEAD: jnp.zeros((width, 1), jnp.float32)}


def adapt(params, rules, key, gradients=None, wanted: bool = True):
  """`adapters.adapt`, with a head that is trained in full if it is `wanted`."""
  if not wanted:
    return adapters.adapt(params, rules, key, gradients)
  start = jnp.asarray(dense(added(params)[HEAD]), jnp.float32)
  full = adapters.Adapted({}, dict(w=start), adapters.Full())
  return adapters.adapt(_base(params), rules, key, gradients) | {HEAD: full}


def check(params, rules, wanted: bool = True):
  """Raises InputError unless `adapt` can start; takes its arguments."""
  base = _base(params) if wanted else params
  for path, adapter in adapters.match(base, rules).items():
    if wanted and adapter.needs_gradient:
      raise InputError(
        f"{type(adapter).__name__} on {path} starts from the loss's gradient, which is "
        "0 where a reward head starts at 0; take LoRA, DoRA or PiSSA"
      )


def _base(params) -> dict:
  return {name: x for name, x in params.items() if name != HEAD}
