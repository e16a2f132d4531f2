"""LoRA-XS on the embedded toy model, which learns two-step problems.

python train.py --config=configs/lora_xs.py
"""

from jaxpeft import config

LINEARS = "layers_.*/(attn|mlp)/.*"


def get_config():
  """The config of this run."""
  c = config.base()
  c.adapt.main = dict(name="LoRAXS", match=LINEARS, rank=16, alpha=16.0, iterations=0)
  c.optim.lr = 1e-2
  return c
