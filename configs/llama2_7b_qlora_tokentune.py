"""QLoRA with TokenTune of a LLaMA2-7B-shaped model on one small GPU.

  python -m jaxpeft memory --config=configs/llama2_7b_qlora_tokentune.py --target=h100
  python train.py --config=configs/llama2_7b_qlora_tokentune.py \
      --config.model.source=meta-llama/Llama-2-7b-hf --config.data.train=YOURS.jsonl

TokenTune's settings [Simoulin et al. 2024, and its code] are LoRA r=8, alpha 16 on the
MLP, learning rate 4e-4 with cosine decay, batch size 32 and rows of 2,048 tokens. This
config has no dropout, and 10 % of the tokens carry gradient instead of 30 %.
The default model.source gives random weights of this shape. We have not trained this
config, for lack of a GPU.

Memory of a step as planned by the compiler for an H100, by tokens per row:
  2,048   4.6 GB
 20,480   7.3 GB, for a GPU with 8 GB
 65,536  15.1 GB, for a GPU with 16 GB
 98,304  19.1 GB, for a GPU with 24 GB
The plan omits the driver's context and libraries. Rows above 4,096 tokens exceed the
positions that the model was trained on.
"""

from jaxpeft import config


def get_config():
  """The config of this run."""
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
