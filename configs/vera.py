"""VeRA on the embedded toy model, which learns two-step problems.

python train.py --config=configs/vera.py
"""

from jaxpeft import config

LINEARS = "layers_.*/(attn|mlp)/.*"


def get_config():
  """The config of this run."""
  c = config.base()
  c.adapt.main = dict(name="VeRA", match=LINEARS, rank=256)
  c.optim.lr = 6e-2
  return c
