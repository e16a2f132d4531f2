"""SVF on the embedded toy model: learns two-step problems.

python train.py --config=configs/svf.py
"""

from jaxpeft import config

LINEARS = "layers_.*/(attn|mlp)/.*"


def get_config():
  """The run."""
  c = config.base()
  c.adapt.main = dict(name="SVF", match=LINEARS)
  c.optim.lr = 0.15
  return c
