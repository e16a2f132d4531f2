"""Rotary position embedding and its context extensions.

Every kind is one function in `KINDS`. Most give frequencies that do not depend on the
text. "dynamic" and "longrope" depend on its length, which is an argument of `rope`.
Source: Su et al. 2021, arXiv:2104.09864; YaRN: Peng et al. 2023, arXiv:2309.00071;
LongRoPE: Ding et al. 2024, arXiv:2402.13753; values as in Hugging Face transformers.
Axes: B rows, T tokens, N head_dim, R rotated elements of a head.
"""

import math

import jax.numpy as jnp
import numpy as np

from jaxpeft.transformer.config import ModelConfig, Rope

_BY_LENGTH = ("dynamic", "longrope")


def needs_length(c: ModelConfig) -> bool:
  """Whether `rope` needs to know how long each text is."""
  return any(r.kind in _BY_LENGTH for r in c.ropes)


def rope(position, c: ModelConfig, length=None):
  """(sin, cos) of the rotation angles, each float32[B, 1, T, R/2].

  If the layers have different embeddings, both have a leading axis: one entry for each
  of `c.ropes`.

  Args:
    position: int32[B, T].
    c: the architecture.
    length: int32[B], the number of positions of each row; None if it is not needed.
  """
  pairs = [_sin_cos(position, r, c.head_dim, length) for r in c.ropes]
  if len(pairs) == 1:
    return pairs[0]
  sin, cos = (jnp.stack(jnp.broadcast_arrays(*x)) for x in zip(*pairs, strict=True))
  return sin, cos


def query_scale(position, c: ModelConfig):
  """Ministral 3's factor on queries, float32[B, 1, T, 1]; None for other models.

  It is 1 + beta log(1 + floor(position / n)) for `c.query_growth` = (beta, n).
  """
  if c.query_growth is None:
    return None
  beta, n = c.query_growth
  scale = 1 + beta * jnp.log1p((position // n).astype(jnp.float32))
  return scale[:, None, :, None]


def rotate(x, sin, cos):
  """x [B, heads, T, N] rotated; element i pairs with i + R/2, as in Hugging Face."""
  rotated = 2 * sin.shape[-1]
  if rotated < x.shape[-1]:
    part = rotate(x[..., :rotated], sin, cos)
    return jnp.concatenate([part, x[..., rotated:]], -1)
  halves = x.astype(jnp.float32).reshape(*x.shape[:-1], 2, -1)
  sin = jnp.stack([-sin, sin], -2)
  rotated = halves * cos[..., None, :] + halves[..., ::-1, :] * sin
  return rotated.reshape(x.shape).astype(x.dtype)


def _sin_cos(position, r: Rope, head_dim: int, length):
  freq, factor = KINDS[r.kind](r, int(head_dim * r.share), length)
  # In float32, because bfloat16 rounds position 257 to 256.
  angle = position.astype(jnp.float32)[:, None, :, None]
  angle = angle * (freq if freq.ndim == 1 else freq[:, None, None, :])
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  return (sin, cos) if factor == 1 else (sin * factor, cos * factor)


# ---- kinds: (Rope, R, length) -> (radians per position float32[R/2] or [B, R/2],
# factor on sin and cos)


def _default(r: Rope, n: int, length):
  power = np.arange(0, n, 2, dtype=np.float32) / np.float32(n)
  return (1.0 / np.float32(r.theta) ** power).astype(np.float32), 1.0


def _none(r: Rope, n: int, length):
  """No rotation, for layers without positions."""
  return np.zeros(n // 2, np.float32), 1.0


def _linear(r: Rope, n: int, length):
  freq, factor = _default(r, n, length)
  return freq / np.float32(dict(r.options)["factor"]), factor


def _llama3(r: Rope, n: int, length):
  """Source: the reference code of Llama 3.1."""
  freq, factor = _default(r, n, length)
  o = dict(r.options)
  low, high = o["low_freq_factor"], o["high_freq_factor"]
  # Full turns over the original context.
  turns = o["original_max_position_embeddings"] * freq / (2 * np.pi)
  smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
  return (freq * ((1 - smooth) / o["factor"] + smooth)).astype(np.float32), factor


def _dynamic(r: Rope, n: int, length):
  """NTK-aware scaling: beyond the original context, the base grows with the length."""
  o = dict(r.options)
  old = o["original_max_position_embeddings"]
  longer = jnp.maximum(length, old).astype(jnp.float32) / old
  base = r.theta * (o["factor"] * longer - (o["factor"] - 1)) ** (n / (n - 2))
  power = np.arange(0, n, 2, dtype=np.float32) / np.float32(n)
  return 1.0 / base[:, None] ** power, 1.0


def _yarn(r: Rope, n: int, length):
  """Interpolates low frequencies only, and sharpens the softmax by a factor."""
  o = dict(r.options)
  scale, old = o["factor"], o["original_max_position_embeddings"]

  def dimension(turns: float) -> float:
    """The dimension that makes so many full turns over the original context."""
    return n * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(r.theta))

  low, high = dimension(o.get("beta_fast") or 32), dimension(o.get("beta_slow") or 1)
  if o.get("truncate", True):
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, n - 1)
  high += 0.001 * (low == high)
  ramp = np.clip((np.arange(n // 2, dtype=np.float32) - low) / (high - low), 0, 1)
  freq, _ = _default(r, n, length)
  freq = (freq / np.float32(scale) * ramp + freq * (1 - ramp)).astype(np.float32)
  factor = o.get("attention_factor")
  if factor is None:
    m, m_all = o.get("mscale"), o.get("mscale_all_dim")
    factor = _mscale(scale, m or 1)
    factor = factor / _mscale(scale, m_all) if m and m_all else _mscale(scale, 1)
  return freq, factor


def _mscale(scale: float, m: float) -> float:
  return 0.1 * m * math.log(scale) + 1.0 if scale > 1 else 1.0


def _longrope(r: Rope, n: int, length):
  """One factor per frequency, from one of two lists, chosen by the text's length."""
  o = dict(r.options)
  old, scale = o["original_max_position_embeddings"], o["factor"]
  freq, _ = _default(r, n, length)
  short, long_ = (
    np.array(o[f"{name}_factor"], np.float32) for name in ("short", "long")
  )
  freq = jnp.where((length > old)[:, None], freq / long_, freq / short)
  factor = o.get("attention_factor")
  if factor is None:
    factor = math.sqrt(1 + math.log(scale) / math.log(old)) if scale > 1 else 1.0
  return freq, factor


KINDS = {
  "default": _default,
  "none": _none,
  "linear": _linear,
  "llama3": _llama3,
  "dynamic": _dynamic,
  "yarn": _yarn,
  "longrope": _longrope,
}
