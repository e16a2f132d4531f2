"""LoRA+ on the embedded toy model, which learns two-step problems.

python train.py --config=configs/lora_plus.py
"""

from jaxpeft import config

LINEARS = "layers_.*/(attn|mlp)/.*"


def get_config():
  """The config of this run."""
  c = config.base()
  c.adapt.main = dict(name="LoRA", match=LINEARS, rank=8, alpha=16.0)
  c.optim.groups.b = dict(match=".*/theta/b", times=16.0)
  c.optim.lr = 2e-3
  return c
