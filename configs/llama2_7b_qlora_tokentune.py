"""QLoRA with TokenTune of a LLaMA2-7B-shaped model on one small GPU.

  python -m jaxpeft memory --config=configs/llama2_7b_qlora_tokentune.py --target=h100
  python train.py --config=configs/llama2_7b_qlora_tokentune.py \
      --config.model.source=meta-llama/Llama-2-7b-hf --config.data.train=YOURS.jsonl

TokenTune's settings [Simoulin et al. 2024, and its code]: LoRA r=8, alpha 16 on the
MLP, lr 4e-4, cosine, global batch 32, rows of 2,048 tokens. Their dropout is left out,
and 10 % of the tokens carry gradient instead of their 30 %. model.source has the shape
only, with random weights. Not trained here: no GPU was at hand.

Compiled for an H100, a step of rows of 2,048 tokens needs 4.6 GB. Rows of 20,480 tokens
need 7.3 GB and fit a GPU of 8 GB, of 65,536 15.1 GB (16), of 98,304 19.1 GB (24): the
driver's context and libraries not included, and beyond the positions that the model
was trained on.
"""

from jaxpeft import config


def get_config():
  """The run."""
  c = config.base()
  c.model.source = "init:llama2-7b"
  c.model.dtype = "bfloat16"
  c.model.quantize = "nf4"
  c.model.remat = "segments"
  c.adapt.main = dict(name="LoRA", match="layers_.*/mlp/.*", rank=8, alpha=16.0)
  c.tokens.fraction = 0.1
  c.data.max_tokens = 2048
  c.train.batch_size, c.train.accumulate = 32, 32
  c.optim.lr = 4e-4
  return c
