"""DPO of the embedded toy, with LoRA: the base is its own reference.

  python train.py --config=configs/dpo.py
  python eval.py --ckpt=runs/dpo --prefer=change
  python eval.py --ckpt=runs/dpo --task=prices --data=embedded:prices/test
  python benchmarks/preference_toy.py --seeds=3       from a policy, on its own samples

Pairs of a right and a wrong answer to the task `prices` (jaxpeft/data/prices.py). The
weight of the chosen answer's own loss, objective.nll, keeps it from becoming unlikely
together with the rejected one [Pang et al. 2024, arXiv:2404.19733]. The toy alone has
never seen such answers, so this run also learns their form; the benchmark starts from a
policy that knows it (configs/preference_toy.py), which is how DPO is meant.
Hardware: two CPU cores, one minute.
"""

from jaxpeft import config


def get_config():
  """The config of this run."""
  c = config.base()
  c.model.remat = "none"
  c.objective.name = "preference"
  c.objective.beta = 0.3
  c.objective.nll = 1.0
  c.adapt.main = dict(name="LoRA", match="layers_.*/(attn|mlp)/.*", rank=8, alpha=16.0)
  c.data.train = "embedded:prices_pairs/train"
  c.data.eval = "embedded:prices_pairs/test"
  c.data.max_tokens, c.data.pack = 64, False  # of both texts of a pair
  c.train.steps, c.train.batch_size = 120, 32
  c.train.log_every, c.train.eval_every, c.train.save_every = 10, 60, 60
  c.train.keep_best = False  # as it was measured
  c.optim.lr = 2e-3
  c.eval.task = "preference"
  c.eval.max_new_tokens = 10  # of eval.py --task=prices
  return c
