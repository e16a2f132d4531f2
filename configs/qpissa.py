"""QPiSSA on the embedded toy model: what PiSSA leaves of the weights is in 4 bits.

python train.py --config=configs/qpissa.py
"""

from jaxpeft import config


def get_config():
  """The run."""
  c = config.base()
  c.adapt.main = dict(
    name="PiSSA",
    match="layers_.*/(attn|mlp)/.*",
    rank=8,
    alpha=8.0,
    quantize="nf4",
    rounds=5,
  )
  c.optim.lr = 5e-3
  return c
