"""Banded SVFT (d=16) of Gemma-2B, the setting of the SVFT paper's Tables 1 and 12.

  python train.py --config=configs/gemma_2b_svft_banded_gsm8k.py \
      --config.data.train=metamath_40k.jsonl --config.data.eval=gsm8k_test.jsonl

Data: 40,000 rows of MetaMathQA as {"question", "answer"} and GSM8K's test file, both
worded "Question: ... Answer:" here; the papers word them as Alpaca does. Hardware: one
GPU of 80 GB, or several. The paper reports 47.84 % on GSM8K for 6.35 M trainable
parameters (fine-tuning everything: 52.69 %), learning rate 5e-3 from its script, 2
epochs of batch 64. Not reproduced here yet. model.source is a hub id (pip install
-e '.[hub]'; the licence must be accepted there) or a local directory.
"""

from jaxpeft import config


def get_config():
  """The run."""
  c = config.base()
  c.model.source = "google/gemma-2b"
  c.model.dtype = "bfloat16"
  c.model.remat = "layer"
  c.adapt.main = dict(
    name="SVFT", match="layers_.*/(attn|mlp)/.*", pattern="banded", off_diagonals=16
  )
  c.data.train, c.data.eval = "metamath_40k.jsonl", "gsm8k_test.jsonl"
  c.data.max_tokens = 512
  c.data.pack = False
  c.train.steps, c.train.batch_size, c.train.accumulate = 1250, 64, 16
  c.optim.lr, c.optim.warmup = 5e-3, 0.1
  c.eval.limit, c.eval.batch_size, c.eval.max_new_tokens = 0, 64, 512
  c.eval.answer = "flexible"
  return c
