"""Full fine-tuning on the embedded toy model, which learns two-step problems.

python train.py --config=configs/full.py
"""

from jaxpeft import config


def get_config():
  """The config of this run."""
  c = config.base()
  c.adapt.main = dict(name="Full", match=".*")
  c.optim.lr = 3e-3
  return c
