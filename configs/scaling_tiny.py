r"""A scaling law measured here: Llama-shaped models of 1 k to 240 k parameters.

  python -m jaxpeft scaling run --config=configs/scaling_tiny.py
  python -m jaxpeft scaling run --config=configs/scaling_tiny.py:quick

Text: synthetic, new for every step, with a known entropy (jaxpeft/sweeps/study).
Hardware: two CPU cores. The study has 7 sizes, 8 budgets of 8e9 to 1e12 FLOPs, and 2
seeds. With ":quick" it has 8 sizes, 6 budgets of 2e9 to 6.4e10 FLOPs, and 1 seed.
docs/scaling.md describes both.
"""

from jaxpeft import config
from jaxpeft.errors import unknown

# sizes, budgets in FLOPs, seeds
PRESETS = {
  "full": ("16x1 16x2 24x2 32x2 48x2 64x2 96x2", [8e9 * 2**i for i in range(8)], 2),
  "quick": ("8x1 8x2 16x1 16x2 24x2 32x2 48x2 64x2", [2e9 * 2**i for i in range(6)], 1),
}


def get_config(preset="full"):
  """The config of this study."""
  if preset not in PRESETS:
    raise unknown("preset", preset, PRESETS)
  sizes, budgets, seeds = PRESETS[preset]
  c = config.base()
  c.adapt.main = dict(name="Full", match=".*")
  c.data.max_tokens = 32
  c.train.batch_size = 16
  c.optim.schedule = "linear"
  c.optim.options = dict(b2=0.98)
  c.scaling.sizes = tuple(sizes.split())
  c.scaling.budgets, c.scaling.seeds = tuple(budgets), seeds
  c.scaling.tokens_per_parameter = (0.4, 1500.0)
  c.scaling.rates, c.scaling.tuned = (3e-3, 1e-2, 3e-2, 1e-1), 4
  c.scaling.text.vocabulary = 32
  c.scaling.text.orders = (0.05, 0.25, 0.35, 0.35)
  return c
