"""Combines several adapters of one base into one adapter.

The way "sum" is exact: W' = W + sum_i w_i (W'_i - W). The other ways are those of
Hugging Face PEFT's `add_weighted_adapter`, for methods whose update W' - W is low-rank.
Sources: Yadav et al. 2023, arXiv:2306.01708 (TIES); Yu et al. 2023, arXiv:2311.03099
(DARE).
Axes: i in, o out, r rank.
"""

import dataclasses
import functools
import zlib

import jax
import jax.numpy as jnp

from jaxpeft import tree
from jaxpeft.adapters import svd
from jaxpeft.adapters.attach import check_same
from jaxpeft.adapters.base import Adapted, is_adapted
from jaxpeft.adapters.lora import LoRA
from jaxpeft.adapters.lora_xs import LoRAXS
from jaxpeft.adapters.svf import SVF
from jaxpeft.adapters.svft import SVFT
from jaxpeft.errors import InputError, unknown
from jaxpeft.linear import is_node


def blend(
  trees: list,
  weights: list[float] | None = None,
  how: str = "sum",
  *,
  density: float = 1.0,
  rank: int | None = None,
  key=None,
):
  """One adapted tree that combines several adapted trees of the same base.

  Args:
    trees: adapted trees; a weight may be adapted in only some of them.
    weights: one number per tree; None means 1 for each.
    how: the way to combine. "sum" is exact. It combines adapters of SVF, of SVFT with
      the same pattern, or of LoRA-XS into one of the same size, and those of other
      methods into a LoRA whose rank is the sum of their ranks. All other ways are for
      low-rank updates A B. "linear", "ties", "dare_linear", "dare_ties" and
      "magnitude_prune" combine the A and the B separately, so that the result contains
      cross terms. "svd", and these names with the suffix "_svd", combine the products
      A B and truncate the result to `rank`.
    density: the fraction of entries that ties, dare and magnitude_prune keep.
    rank: the rank of the result of "svd" and "_svd"; None means the largest rank among
      the trees.
    key: PRNG key that determines which entries dare drops; None means
      `jax.random.key(0)`.
  Raises:
    InputError: the trees have different bases or SVFT patterns, their methods cannot be
      combined in this way, or another argument is invalid.
  """
  weights = [1.0] * len(trees) if weights is None else [float(w) for w in weights]
  if len(weights) != len(trees) or not trees:
    raise InputError(
      f"blend got {len(trees)} adapters and {len(weights)} weights; give at least one "
      "adapter, and one weight per adapter"
    )
  if how != "sum" and how.removesuffix("_svd") not in _RULES:
    raise unknown("way to blend", how, ["sum", *_RULES, *(f"{r}_svd" for r in _RULES)])
  if not 0 < density <= 1:
    raise InputError(f"density {density} of blend must be above 0 and at most 1")
  key = jax.random.key(0) if key is None else key

  def one(path, *nodes):
    path = tree.path_name(path)
    bases = [base for base in map(_base, nodes) if base is not None]
    for base in bases[1:]:
      check_same(path, "one of the adapters", dict(w=bases[0]), dict(w=base))
    parts = [(n, w) for n, w in zip(nodes, weights, strict=True) if is_adapted(n)]
    if not parts:
      return nodes[0]
    if how == "sum":
      return _sum(path, parts)
    own = jax.random.fold_in(key, zlib.crc32(path.encode()))
    return _merge_lora(path, parts, how, density, rank, own)

  return jax.tree_util.tree_map_with_path(one, *trees, is_leaf=is_node)


def _base(node):
  """The base's weight; for PiSSA and the like, the frozen rest of it; None if absent.

  The rest never equals a base, so comparing the two reports an error.
  """
  return node.frozen.get("w") if is_adapted(node) else node


# ---- exact sums -------------------------------------------------------------------


def _sum(path: str, parts) -> Adapted:
  first = parts[0][0]
  kinds = [k for k in _SUMS if all(isinstance(n.adapter, k) for n, _ in parts)]
  if not kinds:
    return _concatenate(path, parts)
  for node, _ in parts[1:]:
    check_same(path, "one of the adapters", first.frozen, node.frozen)
  return _SUMS[kinds[0]](path, parts)


def _sum_svf(path, parts):
  node = parts[0][0]
  z = 1 + sum(w * (_z(n) - 1) for n, w in parts)
  return Adapted(
    node.frozen, dict(z=z), dataclasses.replace(node.adapter, reference=False)
  )


def _z(node):
  f = lambda frozen, theta: node.adapter.z(frozen, theta)  # noqa: E731
  # SVF(reference=True) normalizes over the singular values of one layer, so map it over
  # the layers of a stack.
  f = jax.vmap(f) if node.frozen["s"].ndim == 2 else f
  return f(node.frozen, node.theta)


def _sum_svft(path, parts):
  node = parts[0][0]
  plain = [dataclasses.replace(n.adapter, gate=False, start="zero") for n, _ in parts]
  if len(set(plain)) > 1:
    raise InputError(
      f"the SVFT adapters on {path} have different options: {set(plain)}; only those "
      "with equal options can be added"
    )
  m = sum(w * _entries(n.theta) for n, w in parts)
  return Adapted(node.frozen, dict(m=m), plain[0])


def _entries(theta):
  m = theta["m"]
  return m * jax.nn.sigmoid(theta["g"])[..., None] if "g" in theta else m


def _sum_lora_xs(path, parts):
  node = parts[0][0]
  scale = node.adapter.alpha / node.adapter.rank
  r = sum(w * n.adapter.alpha / n.adapter.rank / scale * n.theta["r"] for n, w in parts)
  return Adapted(
    node.frozen, dict(r=r), dataclasses.replace(node.adapter, start="zero")
  )


def _concatenate(path, parts):
  pairs = [(*_factors(path, node), w) for node, w in parts]
  a = jnp.concatenate([w * c * a for a, _, c, w in pairs], -1)
  b = jnp.concatenate([b for _, b, _, _ in pairs], -2)
  return _as_lora(parts[0][0], a, b)


_SUMS = {SVF: _sum_svf, SVFT: _sum_svft, LoRAXS: _sum_lora_xs}


# ---- the ways of PEFT -------------------------------------------------------------


def _merge_lora(path, parts, how, density, rank, key):
  pairs = [_factors(path, node) for node, _ in parts]
  rule = functools.partial(_RULES[how.removesuffix("_svd")], density=density)
  scales = [c * w for (_, _, c), (_, w) in zip(pairs, parts, strict=True)]
  most = max(a.shape[-1] for a, _, _ in pairs)
  if how == "svd" or how.endswith("_svd"):
    weights, own = [w for _, w in parts], [c for _, _, c in pairs]

    def of_updates(key, factors):
      updates = [c * (a @ b) for (a, b), c in zip(factors, own, strict=True)]
      update = rule(key, updates, weights)
      u, s, vt = svd.exact(update)
      n = rank or most
      return u[:, :n] * s[:n], vt[:n]

    combine = of_updates
  else:
    if len({a.shape[-1] for a, _, _ in pairs}) > 1:
      raise InputError(
        f"the adapters on {path} differ in rank; use how={how + '_svd'!r}"
      )
    root = [abs(s) ** 0.5 for s in scales]
    signed = [r if s >= 0 else -r for r, s in zip(root, scales, strict=True)]

    def of_factors(key, factors):
      one, two = jax.random.split(key)
      a = rule(one, [a for a, _ in factors], signed)
      return a, rule(two, [b for _, b in factors], root)

    combine = of_factors

  factors = [(a, b) for a, b, _ in pairs]
  if factors[0][0].ndim == 3:
    keys = jax.random.split(key, factors[0][0].shape[0])
    return _as_lora(parts[0][0], *jax.vmap(combine)(keys, factors))
  return _as_lora(parts[0][0], *combine(key, factors))


def _factors(path, node):
  """(a, b, c) with W' = W + c a b; c is separate, as PEFT combines a and b without it.

  Args:
    path: the weight's path, for the error message.
    node: the adapted weight.
  Raises:
    InputError: the method has no such factors.
  """
  if type(node.adapter).lora is LoRA.lora:
    return node.theta["a"], node.theta["b"], node.adapter.scale
  lora, w = node.adapter.lora, node.frozen.get("w")
  stacked = w is not None and w.ndim == 3
  pair = (jax.vmap(lora) if stacked else lora)(node.frozen, node.theta)
  if pair is None:
    raise InputError(
      f"{type(node.adapter).__name__} on {path} has no low-rank update of its base, so "
      "it cannot be combined with the others; convert it to LoRA first by exporting it "
      "with --format=peft"
    )
  return *pair, 1.0


def _as_lora(node, a, b) -> Adapted:
  rank = a.shape[-1]
  frozen = dict(w=node.frozen["w"])
  return Adapted(frozen, dict(a=a, b=b), LoRA(rank=rank, alpha=float(rank)))


def _linear(key, tensors, weights, density):
  del key, density
  return sum(w * x for x, w in zip(tensors, weights, strict=True))


def _magnitude_prune(key, tensors, weights, density):
  return _linear(key, [_largest(x, density) for x in tensors], weights, density)


def _ties(key, tensors, weights, density):
  del key
  return _elect([_largest(x, density) for x in tensors], weights)


def _dare_linear(key, tensors, weights, density):
  return _linear(key, _drop(key, tensors, density), weights, density)


def _dare_ties(key, tensors, weights, density):
  return _elect(_drop(key, tensors, density), weights)


_RULES = {
  "linear": _linear,
  "svd": _linear,
  "magnitude_prune": _magnitude_prune,
  "ties": _ties,
  "dare_linear": _dare_linear,
  "dare_ties": _dare_ties,
}


def _largest(x, density):
  """x with the fraction `density` of its entries, the largest by magnitude; rest 0."""
  if density == 1:
    return x
  kept = jax.lax.top_k(jnp.abs(x).reshape(-1), int(density * x.size))[1]
  mask = jnp.zeros(x.size, x.dtype).at[kept].set(1)
  return x * mask.reshape(x.shape)


def _drop(key, tensors, density):
  """The tensors with random entries set to zero and all others divided by density."""
  keys = jax.random.split(key, len(tensors))
  return [
    x * jax.random.bernoulli(k, density, x.shape) / density
    for k, x in zip(keys, tensors, strict=True)
  ]


def _elect(tensors, weights):
  """For each entry, the weighted mean of the tensors whose sign is that of the sum."""
  x = jnp.stack(tensors)
  sign = jnp.where(x.sum(0) >= 0, 1, -1)
  same = jnp.sign(x) == sign
  w = jnp.array(weights, x.dtype).reshape(-1, *[1] * (x.ndim - 1))
  return (x * w * same).sum(0) / jnp.maximum(same.sum(0), 1)
