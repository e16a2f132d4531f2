"""LoRA (r=64, all seven projections) of Mistral-7B, the baseline of the PiSSA paper.

  python train.py --config=configs/mistral_7b_lora_gsm8k.py \
      --config.data.train=metamath_100k.jsonl --config.data.eval=gsm8k_test.jsonl

Data: 100,000 rows of MetaMathQA as {"question", "answer"} and GSM8K's test file, both
worded "Question: ... Answer:" here; the papers word them as Alpaca does. Hardware: one
GPU of 80 GB. The PiSSA paper's Table 2 reports 69.50 % on GSM8K for LoRA with
167,772,160 trainable parameters: learning rate 2e-5, cosine, warm-up 3 %, one epoch of
batch 128. Not reproduced here yet. model.source is a hub id (pip install
-e '.[hub]') or a local directory.
"""

from jaxpeft import config


def get_config():
  """The run."""
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
