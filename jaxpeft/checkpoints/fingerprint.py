"""A few numbers that tell one base model, and one choice of factors, from another."""

import zlib

import numpy as np

from jaxpeft.parallel import sharding

_SKETCHES = 4  # numbers per leaf
_SAMPLED_ROWS = 16  # rows of the last two axes that a sketch reads


def fingerprint(tree: dict) -> dict[str, list[float]]:
  """{path: a few numbers} of every leaf, to be compared with `differences`.

  The numbers are random-sign sums over sampled rows. Another checkpoint, a flipped sign
  or a rotated pair of singular vectors changes them; the rounding of another machine
  does not.

  Args:
    tree: flat dict of path -> array.
  """
  return {path: _sketch(path, leaf) for path, leaf in sorted(tree.items())}


def differences(a: dict, b: dict, tolerance: float = 1e-3) -> list[str]:
  """The paths at which two fingerprints belong to different arrays."""
  paths = sorted(a.keys() | b.keys())
  return [
    path
    for path in paths
    if path not in a
    or path not in b
    or len(a[path]) != len(b[path])
    or not np.allclose(a[path], b[path], rtol=tolerance, atol=tolerance)
  ]


def _sketch(path: str, leaf) -> list[float]:
  rows = leaf.shape[-2] if leaf.ndim > 1 else 1
  sample = leaf[..., :: max(1, rows // _SAMPLED_ROWS), :] if leaf.ndim > 1 else leaf
  sample = sharding.to_host(sample).astype(np.float64).reshape(-1)
  rng = np.random.default_rng(zlib.crc32(path.encode()))
  signs = rng.integers(0, 2, (_SKETCHES, 1 + sample.size // 64), np.int8) * 2 - 1
  # Signs are an outer product, so that a sketch of a large leaf stays cheap.
  inner = rng.integers(0, 2, (_SKETCHES, 64), np.int8) * 2 - 1
  padded = np.zeros(signs.shape[1] * 64)
  padded[: sample.size] = sample
  sums = np.einsum("sa,ab,sb->s", signs, padded.reshape(-1, 64), inner, optimize=True)
  norm = np.linalg.norm(sample)
  return [float(f"{x:.6g}") for x in (norm, *(sums / max(1.0, norm)))]
