"""A Bradley-Terry reward model of the embedded toy, with LoRA and a scalar head.

  python train.py --config=configs/reward_bt.py
  python eval.py --ckpt=runs/reward_bt
  python benchmarks/preference_toy.py --seeds=3       of a policy, on its own samples

Pairs of a right and a wrong answer to the task `prices` (jaxpeft/data/prices.py), whose
sum is written out: to tell them apart takes one comparison, of the sum with the total.
The loss stays near log 2 = 0.69 for 50 to 150 steps and then falls: judge no run before
step 200.
Hardware: two CPU cores, two minutes.
"""

from jaxpeft import config


def get_config():
  """The config of this run."""
  c = config.base()
  c.model.remat = "none"
  c.objective.name = "reward"
  c.adapt.main = dict(name="LoRA", match="layers_.*/(attn|mlp)/.*", rank=8, alpha=16.0)
  c.data.train = "embedded:prices_pairs/train"
  c.data.eval = "embedded:prices_pairs/test"
  c.data.max_tokens, c.data.pack = 64, False  # of both texts of a pair
  c.train.steps, c.train.batch_size = 450, 32
  c.train.log_every, c.train.eval_every, c.train.save_every = 25, 150, 150
  c.train.keep_best = False  # as it was measured
  c.optim.lr = 3e-3
  c.eval.task = "preference"
  return c
