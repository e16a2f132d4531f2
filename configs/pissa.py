"""PiSSA on the embedded toy model, which learns two-step problems.

python train.py --config=configs/pissa.py
"""

from jaxpeft import config

LINEARS = "layers_.*/(attn|mlp)/.*"


def get_config():
  """The config of this run."""
  c = config.base()
  c.adapt.main = dict(name="PiSSA", match=LINEARS, rank=8, alpha=8.0, iterations=0)
  c.optim.lr = 5e-3
  return c
