"""Rotary position embedding. Source: Su et al. 2021, arXiv:2104.09864."""

import jax.numpy as jnp
import numpy as np


def rope(position, c):
  """(sin, cos) of the rotation angles, each float32[B, 1, T, N/2].

  Args:
    position: int32[B, T].
    c: a `ModelConfig`.
  """
  # In float32, because bfloat16 rounds position 257 to 256.
  angle = position.astype(jnp.float32)[:, None, :, None] * rope_frequencies(c)
  return jnp.sin(angle), jnp.cos(angle)


def rope_frequencies(c):
  """Radians per position, float32[N/2], with the context scaling of `c.rope_scaling`.

  Source: Su et al. 2021; for "llama3", the reference code of Llama 3.1.
  """
  power = np.arange(0, c.head_dim, 2, dtype=np.float32) / np.float32(c.head_dim)
  freq = (1.0 / np.float32(c.rope_theta) ** power).astype(np.float32)
  scaling = dict(c.rope_scaling)
  kind = scaling.get("rope_type", "default")
  if kind == "linear":
    return freq / np.float32(scaling["factor"])
  if kind == "llama3":
    old, low, high = (
      scaling[k]
      for k in (
        "original_max_position_embeddings",
        "low_freq_factor",
        "high_freq_factor",
      )
    )
    turns = old * freq / (2 * np.pi)  # full turns over the original context
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (freq * ((1 - smooth) / scaling["factor"] + smooth)).astype(np.float32)
  return freq


def rotate(x, sin, cos):
  """x [B, heads, T, N] rotated; element i pairs with i + N/2, as in Hugging Face."""
  halves = x.astype(jnp.float32).reshape(*x.shape[:-1], 2, -1)
  sin = jnp.stack([-sin, sin], -2)
  rotated = halves * cos[..., None, :] + halves[..., ::-1, :] * sin
  return rotated.reshape(x.shape).astype(x.dtype)
