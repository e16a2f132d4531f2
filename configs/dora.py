"""DoRA on the embedded toy model, which learns two-step problems.

python train.py --config=configs/dora.py
"""

from jaxpeft import config

LINEARS = "layers_.*/(attn|mlp)/.*"


def get_config():
  """The config of this run."""
  c = config.base()
  c.adapt.main = dict(name="DoRA", match=LINEARS, rank=8, alpha=16.0)
  c.optim.lr = 1e-2
  return c
