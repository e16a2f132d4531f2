r"""The embedded toy learns to try, to check its tries, and to try again.

  python benchmarks/sets_toy.py --seeds=3                     everything, and a table
  python train.py --config=configs/sets_toy.py                the first stage alone
  python train.py --config=configs/sets_toy.py:sums           the control

Full fine-tuning on transcripts of the task `budget` (jaxpeft/data/budget.py). It is for
strategies in which a model verifies and corrects its own answers, such as SETS [Chen et
al. 2025, arXiv:2501.19306]. In the first stage, the wrong tries in the transcripts are
drawn from the prices. In the second stage, which only the benchmark has, the wrong
tries are the model's own. In the control, the task `sums`, checking is as hard as
solving.
Hardware: two CPU cores.
"""

from jaxpeft import config
from jaxpeft.errors import unknown

TASKS = {"budget": 8, "sums": 20}  # most new tokens of a try


def get_config(task="budget"):
  """The config of this run on that task."""
  if task not in TASKS:
    raise unknown("task", task, TASKS)
  c = config.base()
  c.model.remat = "none"
  c.adapt.main = dict(name="Full", match=".*")
  c.data.train, c.data.eval = f"embedded:{task}/train", f"embedded:{task}/test"
  c.data.max_tokens = 208  # of a transcript with the most wrong tries
  c.train.steps, c.train.batch_size = 1600, 8
  c.train.log_every = 100
  c.train.eval_every = c.train.save_every = 400
  c.optim.lr = 2e-3
  c.optim.weight_decay = 0.01
  c.optim.options = dict(b2=0.98)
  c.eval.task, c.eval.max_new_tokens = task, TASKS[task]
  c.eval.batch_size = 200
  return c
