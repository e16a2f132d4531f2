"""Banded SVFT (d=16) of Gemma-2B, the setting of the SVFT paper's Tables 1 and 12.

  python train.py --config=configs/gemma_2b_svft_banded_gsm8k.py \
      --config.data.train=metamath_40k.jsonl --config.data.eval=gsm8k_test.jsonl

Data: 40,000 rows of MetaMathQA as {"question", "answer"}, and GSM8K's test file. Both
use the template "Question: ... Answer:" here, where the papers use Alpaca's.
Hardware: one GPU with 80 GB, or several.
Expected: the paper reports 47.84 % on GSM8K with 6.35 M trainable parameters (full
fine-tuning: 52.69 %) after 2 epochs at batch size 64; the learning rate 5e-3 is from
its script. We have not reproduced this yet.
model.source is a local directory or a Hugging Face Hub id (pip install -e '.[hub]', and
accept the license on the Hub).
"""

from jaxpeft import config


def get_config():
  """The config of this run."""
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
