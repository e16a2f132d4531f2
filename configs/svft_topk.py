"""Top-k SVFT on the embedded toy model, which learns two-step problems.

python train.py --config=configs/svft_topk.py
"""

from jaxpeft import config


def get_config():
  """The config of this run."""
  c = config.base()
  c.adapt.main = dict(
    name="SVFT", match="layers_.*/(attn|mlp)/.*", pattern="topk", off_diagonals=8
  )
  c.optim.lr = 6e-2
  return c
