"""Banded SVFT on the embedded toy model, with base and singular vectors in NF4.

python train.py --config=configs/qsvft.py
"""

from jaxpeft import config


def get_config():
  """The config of this run."""
  c = config.base()
  c.model.quantize = "nf4"
  c.adapt.main = dict(
    name="SVFT",
    match="layers_.*/(attn|mlp)/.*",
    pattern="banded",
    off_diagonals=8,
    quantize="nf4",
  )
  c.optim.lr = 2e-2
  return c
