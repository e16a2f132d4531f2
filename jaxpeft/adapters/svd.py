"""Singular value decomposition with canonical signs; exact ones are kept on disk.

The signs of singular vectors are arbitrary, but SVFT's off-diagonals and LoRA-XS's R
depend on them: a theta trained with one choice of signs is wrong with another. Signs
are therefore made canonical here, and a checkpoint stores a fingerprint of the factors
it was trained with (`checkpoints.fingerprint`).
Axes: i in, o out, k = min(in, out).
"""

import functools

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxpeft.adapters import svd_files


def svd(w):
  """The thin SVD w = u @ diag(s) @ vt in float32, with canonical signs.

  For a concrete array, the result is read from the disk cache, or computed and stored
  there. For a traced array, the decomposition becomes part of the traced program.

  Args:
    w: float[in, out].
  Returns:
    u float32[in, k], s float32[k] descending, vt float32[k, out], k = min(in, out).
  """
  if isinstance(w, Tracer):
    return exact(w)
  digest = svd_files.digest(w)
  factors = svd_files.read(digest)
  if factors is None:
    factors = jax.block_until_ready(exact(w))
    svd_files.write(digest, factors)
  return factors


@jax.jit
def exact(w):
  """The same as `svd`, as a pure function without the disk cache."""
  u, s, vt = jnp.linalg.svd(w.astype(jnp.float32), full_matrices=False)
  return canonical_signs(u, s, vt)


def leading(key, w, rank: int, iterations: int | None):
  """The `rank` leading singular triplets of w.

  Args:
    key: PRNG key for the randomized SVD.
    w: float[in, out].
    rank: the number of triplets.
    iterations: the number of iterations of the randomized SVD; 0 or None computes the
      exact SVD.
  Returns:
    u float32[in, rank], s float32[rank] descending, vt float32[rank, out].
  """
  if not iterations:
    u, s, vt = svd(w)
    return u[:, :rank], s[:rank], vt[:rank]
  return randomized(key, w, rank, iterations)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def randomized(key, w, rank: int, iterations: int = 4, oversample: int = 0):
  """The approximate leading singular triplets, by subspace iteration.

  As in torch.svd_lowrank, a random basis is multiplied `iterations` times by w and its
  transpose, and the exact SVD is computed within the resulting subspace. The cost is
  O(in out rank) per iteration.
  Source: Halko et al. 2011, algorithms 4.4 and 5.1. In addition, each iteration shifts
  w'w by half the smallest eigenvalue found so far. If singular values decay slowly,
  this converges up to twice as fast.
  Source: Feng et al. 2024, ACM TOMS 50(2), "Algorithm 1043".

  Args:
    key: PRNG key for the random basis.
    w: float[in, out].
    rank: the number of triplets.
    iterations: the number of iterations; the result becomes more accurate with each,
      and slowly decaying singular values need more of them.
    oversample: the number of additional columns of the basis, which are dropped at the
      end; torch uses 0.
  Returns:
    u float32[in, rank], s float32[rank] descending, vt float32[rank, out], with
    canonical signs.
  """
  w = w.astype(jnp.float32)
  # The barrier makes XLA store a transposed copy of w. It prevents XLA:CPU from folding
  # the transpose into every product, with which this function takes 21% to 28% longer
  # (rank 64, 8 iterations, weights of 2048 x 2048 and 1024 x 2816).
  wt = jax.lax.optimization_barrier(w.T)
  columns = min(rank + oversample, *w.shape)
  if w.shape[0] < w.shape[1]:  # iterate on the shorter side
    vt, s, u = _within(key, wt, w, columns, iterations)
    u, vt = u.T, vt.T
  else:
    u, s, vt = _within(key, w, wt, columns, iterations)
  return canonical_signs(u[:, :rank], s[:rank], vt[:rank])


def _within(key, w, wt, columns: int, iterations: int):
  """(u, s, vt) of w [n, k], n >= k, restricted to a subspace found by iteration.

  Args:
    key: PRNG key for the random basis.
    w: float32[n, k].
    wt: float32[k, n], the transpose of w.
    columns: the dimension of the subspace, at most k.
    iterations: the number of iterations.
  """
  p, shift = _basis(jax.random.normal(key, (w.shape[1], columns)))[0], 0.0
  for _ in range(iterations):
    p, r = _basis(wt @ (w @ p) - shift * p)
    # The shift stays below half the smallest eigenvalue in the subspace of p. This
    # prevents eigenvalues outside the subspace from overtaking those inside it.
    least = jnp.linalg.svd(r, compute_uv=False)[-1]
    shift = jnp.where(least > shift, (least + shift) / 2, shift)
  q = _orthonormal(w @ p)
  # w is approximately q (q' w) = q (y' p) p', so the SVD of the small matrix y' p is
  # enough.
  y = wt @ q
  p = _orthonormal(y)
  u, s, vt = jnp.linalg.svd(y.T @ p, full_matrices=False)
  return q @ u, s, vt @ p.T


def _basis(y):
  """(q, r) with y = q r, where q is a well-conditioned basis of the columns of y.

  This is one round of Cholesky QR. It consists of matrix products, so it is several
  times as fast as Householder QR. How close q is to orthonormal depends on y's
  condition number; that is accurate enough between products with w. If y'y is too close
  to singular for float32, Householder QR is used instead.

  Args:
    y: float32[n, k], n >= k.
  """
  q, r = _cholesky_qr(y)
  return jax.lax.cond(
    jnp.isfinite(q[0]).all(), lambda: (q, r), lambda: tuple(jnp.linalg.qr(y))
  )


def _orthonormal(y):
  """A basis of the columns of y [n, k] that is orthonormal up to float32 rounding.

  This is two rounds of Cholesky QR, or Householder QR if these fail.
  Source: Yamamoto et al. 2015, Electronic Transactions on Numerical Analysis 44.
  """
  q, _ = _cholesky_qr(_cholesky_qr(y)[0])
  loss = jnp.abs(q.T @ q - jnp.eye(y.shape[1])).max()
  return jax.lax.cond(loss < 1e-5, lambda: q, lambda: jnp.linalg.qr(y)[0])


def _cholesky_qr(y):
  """(y r^-1, r) with y'y = r'r; both are NaN if the Cholesky decomposition fails."""
  lower = jnp.linalg.cholesky(y.T @ y)
  identity = jnp.eye(y.shape[1])
  inverse = jax.lax.linalg.triangular_solve(lower, identity, left_side=True, lower=True)
  return y @ inverse.T, lower.T


def canonical_signs(u, s, vt):
  """(u, s, vt) with signs such that each column of u has a positive largest entry.

  The largest entry is the one with the largest magnitude. The rows of vt change sign
  together with the columns of u, so the product stays the same.

  Args:
    u: float[in, k].
    s: float[k].
    vt: float[k, out].
  """
  largest = jnp.take_along_axis(u, jnp.abs(u).argmax(0, keepdims=True), axis=0)
  sign = jnp.where(largest < 0, -1.0, 1.0).astype(u.dtype)
  return u * sign, s, vt * sign.T
