"""NoRA+ on the embedded toy model, which learns two-step problems.

python train.py --config=configs/nora_plus.py
"""

from jaxpeft import config

LINEARS = "layers_.*/(attn|mlp)/.*"


def get_config():
  """The config of this run."""
  c = config.base()
  c.adapt.main = dict(name="NoRA", match=LINEARS, rank=8, alpha=16.0, sigma=0.1)
  c.optim.precondition = "scaled_gd"
  c.optim.lr = 1e-2
  return c
