"""QPiSSA on the embedded toy model: PiSSA over a residual that is stored in NF4.

python train.py --config=configs/qpissa.py
"""

from jaxpeft import config


def get_config():
  """The config of this run."""
  c = config.base()
  c.adapt.main = dict(
    name="PiSSA",
    match="layers_.*/(attn|mlp)/.*",
    rank=8,
    alpha=8.0,
    quantize="nf4",
    rounds=5,
    iterations=0,
  )
  c.optim.lr = 5e-3
  return c
