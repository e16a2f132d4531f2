r"""Pretrains the embedded toy model on one-step problems and plain sums.

python train.py --config=configs/pretrain_tiny.py
python -m jaxpeft export --ckpt=runs/pretrain_tiny --dtype=bfloat16 \
      --out=jaxpeft/assets/tiny
"""

from jaxpeft import config


def get_config():
  """The config of this run."""
  c = config.base()
  c.model.source = "init:tiny"
  c.adapt.main = dict(name="Full", match=".*")
  c.data.train = "embedded:pretrain"
  c.data.eval = "embedded:one_step/test"
  c.data.max_tokens = 128
  c.train.steps = 8000
  c.train.batch_size = 16
  c.train.log_every = 50
  c.train.eval_every = 250
  c.train.save_every = 250
  c.optim.lr = 3e-3
  c.optim.weight_decay = 0.01
  c.optim.options = dict(b2=0.98)
  return c
