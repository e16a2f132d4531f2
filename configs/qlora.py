"""QLoRA on the embedded toy model: LoRA over an NF4 base.

python train.py --config=configs/qlora.py
"""

from jaxpeft import config


def get_config():
  """The config of this run."""
  c = config.base()
  c.model.quantize = "nf4"
  c.adapt.main = dict(name="LoRA", match="layers_.*/(attn|mlp)/.*", rank=8, alpha=16.0)
  c.optim.lr = 1e-2
  return c
