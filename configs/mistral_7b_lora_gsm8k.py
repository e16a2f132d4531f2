"""LoRA (r=64, all seven projections) of Mistral-7B, the baseline of the PiSSA paper.

  python train.py --config=configs/mistral_7b_lora_gsm8k.py \
      --config.data.train=metamath_100k.jsonl --config.data.eval=gsm8k_test.jsonl

Data: 100,000 rows of MetaMathQA as {"question", "answer"}, and GSM8K's test file. Both
use the template "Question: ... Answer:" here, where the papers use Alpaca's.
Hardware: one GPU with 80 GB.
Expected: the PiSSA paper's Table 2 reports 69.50 % on GSM8K for LoRA with 167,772,160
trainable parameters, after one epoch at batch size 128 with learning rate 2e-5, cosine
decay and 3 % warm-up. We have not reproduced this yet.
model.source is a local directory or a Hugging Face Hub id (pip install -e '.[hub]').
"""

from jaxpeft import config


def get_config():
  """The config of this run."""
  c = config.base()
  c.model.source = "mistralai/Mistral-7B-v0.1"
  c.model.dtype = "bfloat16"
  c.model.remat = "layer"
  c.adapt.main = dict(name="LoRA", match="layers_.*/(attn|mlp)/.*", rank=64, alpha=64.0)
  c.data.train, c.data.eval = "metamath_100k.jsonl", "gsm8k_test.jsonl"
  c.data.max_tokens = 512
  c.data.pack = False
  c.train.steps, c.train.batch_size, c.train.accumulate = 781, 128, 32
  c.optim.lr, c.optim.warmup = 2e-5, 0.03
  c.eval.limit, c.eval.batch_size, c.eval.max_new_tokens = 0, 64, 512
  c.eval.answer = "flexible"
  return c
