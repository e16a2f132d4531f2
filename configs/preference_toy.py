"""A policy for preferences: the embedded toy learns from a noisy demonstrator.

  python train.py --config=configs/preference_toy.py
  python benchmarks/preference_toy.py --seeds=3     with reward and DPO after it

Full fine-tuning on the task `prices` (jaxpeft/data/prices.py): which two of three
prices make the total? The demonstrator chooses the right two half of the time and
always adds correctly. So the policy adds, guesses among the pairs, and some of its
samples are right: a reward model can choose among them, and DPO can make them likelier.
Hardware: two CPU cores, one minute.
Expected: sampled answers are right in 37 % to 39 %, greedy ones in 52 % to 56 %.
"""

from jaxpeft import config


def get_config():
  """The config of this run."""
  c = config.base()
  c.model.remat = "none"
  c.adapt.main = dict(name="Full", match=".*")
  c.data.train, c.data.eval = "embedded:prices/train", "embedded:prices/test"
  c.data.max_tokens, c.data.pack = 32, False
  c.train.steps, c.train.batch_size = 400, 32
  c.train.log_every, c.train.eval_every, c.train.save_every = 20, 200, 200
  c.optim.lr = 3e-3
  c.optim.weight_decay = 0.01
  c.optim.options = dict(b2=0.98)
  c.eval.task, c.eval.max_new_tokens = "prices", 10
  c.eval.batch_size = 256
  return c
