"""SVF on the embedded toy model, which learns two-step problems.

python train.py --config=configs/svf.py
"""

from jaxpeft import config

LINEARS = "layers_.*/(attn|mlp)/.*"


def get_config():
  """The config of this run."""
  c = config.base()
  c.adapt.main = dict(name="SVF", match=LINEARS)
  c.optim.lr = 0.15
  return c
