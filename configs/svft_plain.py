"""Plain SVFT on the embedded toy model, which learns two-step problems.

python train.py --config=configs/svft_plain.py
"""

from jaxpeft import config


def get_config():
  """The config of this run."""
  c = config.base()
  c.adapt.main = dict(name="SVFT", match="layers_.*/(attn|mlp)/.*", pattern="plain")
  c.optim.lr = 0.15
  return c
