"""LoRA-GA on the embedded toy model, which learns two-step problems.

python train.py --config=configs/lora_ga.py
"""

from jaxpeft import config


def get_config():
  """The config of this run."""
  c = config.base()
  c.adapt.main = dict(
    name="LoRAGA", match="layers_.*/(attn|mlp)/.*", rank=8, alpha=16.0
  )
  c.optim.lr = 1e-2
  return c
