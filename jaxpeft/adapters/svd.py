"""Singular value decomposition with canonical signs and a disk cache.

The signs of singular vectors are arbitrary, but the meaning of SVFT's off-diagonals and
LoRA-XS's core depends on them: a theta that was trained with one set of factors is
wrong with another. Signs are therefore fixed here, and a run recognizes the factors
that it was trained with by their fingerprint (`checkpoints.fingerprint`).
"""

import functools
import hashlib
import os
import pathlib
import tempfile
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax.core import Tracer


def svd(w):
  """Thin SVD w = u @ diag(s) @ vt in float32, each u column's largest entry positive.

  A concrete array goes through the disk cache; a traced one is computed in place.

  Args:
    w: float[in, out].
  Returns:
    u float32[in, k], s float32[k] descending, vt float32[k, out], k = min(in, out).
  """
  if isinstance(w, Tracer):
    return exact(w)
  path = cache_dir() / f"{_digest(w)}.safetensors"
  if path.exists():
    try:
      f = safetensors.numpy.load_file(path)
      if int(f.pop("crc32")) == _crc32(f):
        return tuple(jnp.asarray(f[name]) for name in ("u", "s", "vt"))
    except Exception:  # a damaged cache entry is no error: it is made again
      pass
    path.unlink(missing_ok=True)
  factors = exact(w)
  arrays = dict(zip(("u", "s", "vt"), map(np.asarray, factors), strict=True))
  _write(path, arrays | dict(crc32=np.array(_crc32(arrays), np.uint32)))
  return factors


@jax.jit
def exact(w):
  """The SVD of `svd`, as a pure function."""
  u, s, vt = jnp.linalg.svd(w.astype(jnp.float32), full_matrices=False)
  return canonical_signs(u, s, vt)


def leading(key, w, rank: int, iterations: int | None = None):
  """The `rank` leading triplets (u, s, vt): exact, or randomized with `iterations`."""
  if iterations is None:
    u, s, vt = svd(w)
    return u[:, :rank], s[:rank], vt[:rank]
  return randomized(key, w, rank, iterations)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def randomized(key, w, rank: int, iterations: int = 4, oversample: int = 0):
  """Approximate leading triplets by subspace iteration, in O(in out rank).

  As torch.svd_lowrank has it: products of w and its transpose with a random basis,
  `iterations` times, and the exact SVD within what they span. Source: Halko et al.
  2011, algorithms 4.4 and 5.1. Unlike there, w'w is shifted by what is known of its
  next eigenvalue: an iteration gains up to twice as much where singular values decay
  slowly. Source: Feng et al. 2024, ACM TOMS 50(2), "Algorithm 1043".

  Args:
    key: of the basis.
    w: float[in, out].
    rank: triplets.
    iterations: more are nearer to the exact ones where singular values decay slowly.
    oversample: further columns of the basis, dropped at the end; 0 as in torch.
  Returns:
    u float32[in, rank], s float32[rank] descending, vt float32[rank, out], with
    canonical signs.
  """
  w = w.astype(jnp.float32)
  # A transposed copy: XLA:CPU multiplies by a transpose at a fifth of the speed.
  wt = jax.lax.optimization_barrier(w.T)
  columns = min(rank + oversample, *w.shape)
  if w.shape[0] < w.shape[1]:  # bases lie on the shorter side
    vt, s, u = _within(key, wt, w, columns, iterations)
    u, vt = u.T, vt.T
  else:
    u, s, vt = _within(key, w, wt, columns, iterations)
  return canonical_signs(u[:, :rank], s[:rank], vt[:rank])


def _within(key, w, wt, columns: int, iterations: int):
  """The SVD of w within a basis found by iteration; wt is its transpose."""
  p, shift = _basis(jax.random.normal(key, (w.shape[1], columns)))[0], 0.0
  for _ in range(iterations):
    p, r = _basis(wt @ (w @ p) - shift * p)
    # Below half the last eigenvalue within p: those beyond it cannot overtake.
    least = jnp.linalg.svd(r, compute_uv=False)[-1]
    shift = jnp.where(least > shift, (least + shift) / 2, shift)
  q = _orthonormal(w @ p)
  # w is about q (q' w) = q (r' p'), r small: only its SVD is needed.
  y = wt @ q
  p = _orthonormal(y)
  u, s, vt = jnp.linalg.svd(y.T @ p, full_matrices=False)
  return q @ u, s, vt @ p.T


def _basis(y):
  """(q, r) with y = q r: a well-conditioned basis of the columns of y [n, k], n >= k.

  One round of Cholesky's QR: products, and so several times as fast as Householder's,
  and orthonormal up to y's condition, which is enough between products with w. Where
  y'y is too near to singular for it in float32, Householder's after all.
  """
  q, r = _cholesky_qr(y)
  return jax.lax.cond(
    jnp.isfinite(q[0]).all(), lambda: (q, r), lambda: tuple(jnp.linalg.qr(y))
  )


def _orthonormal(y):
  """The same basis, orthonormal to float32's rounding, by a second round.

  Source: Yamamoto et al. 2015, Electronic Transactions on Numerical Analysis 44.
  """
  q, _ = _cholesky_qr(_cholesky_qr(y)[0])
  loss = jnp.abs(q.T @ q - jnp.eye(y.shape[1])).max()
  return jax.lax.cond(loss < 1e-5, lambda: q, lambda: jnp.linalg.qr(y)[0])


def _cholesky_qr(y):
  """(y r^-1, r) with y'y = r'r; NaN where that fails."""
  lower = jnp.linalg.cholesky(y.T @ y)
  identity = jnp.eye(y.shape[1])
  inverse = jax.lax.linalg.triangular_solve(lower, identity, left_side=True, lower=True)
  return y @ inverse.T, lower.T


def canonical_signs(u, s, vt):
  """Flips pairs (u_i, v_i) so that u_i's entry of largest magnitude is positive."""
  largest = jnp.take_along_axis(u, jnp.abs(u).argmax(0, keepdims=True), axis=0)
  sign = jnp.where(largest < 0, -1.0, 1.0).astype(u.dtype)
  return u * sign, s, vt * sign.T


def cache_dir() -> pathlib.Path:
  """$JAXPEFT_CACHE/svd, by default ~/.cache/jaxpeft/svd."""
  root = os.environ.get("JAXPEFT_CACHE") or pathlib.Path.home() / ".cache" / "jaxpeft"
  return pathlib.Path(root) / "svd"


def _digest(w) -> str:
  w = np.asarray(w)
  header = f"svd-v2 {w.dtype} {w.shape} ".encode()
  return hashlib.sha256(header + np.ascontiguousarray(w).tobytes()).hexdigest()


def _crc32(arrays: dict) -> int:
  """Of u, s and vt."""
  value = 0
  for name in ("u", "s", "vt"):
    value = zlib.crc32(np.ascontiguousarray(arrays[name]).data, value)
  return value


def _write(path: pathlib.Path, arrays: dict):
  """Writes all or nothing; a cache that cannot be written is done without."""
  name = path.with_suffix(".none")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    safetensors.numpy.save_file(arrays, name)
    os.replace(name, path)
  except (OSError, safetensors.SafetensorError):
    pathlib.Path(name).unlink(missing_ok=True)
