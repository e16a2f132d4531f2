"""(IA)3 on the embedded toy model, which learns two-step problems.

python train.py --config=configs/ia3.py
"""

from jaxpeft import config


def get_config():
  """The config of this run."""
  c = config.base()
  c.adapt.keys = dict(name="IA3", match="layers_.*/attn/[kv]")
  c.adapt.hidden = dict(name="IA3", match="layers_.*/mlp/down", on="input")
  c.optim.lr = 0.15
  return c
