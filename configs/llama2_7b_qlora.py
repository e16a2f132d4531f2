"""QLoRA (r=16, all seven projections) of a LLaMA2-7B-shaped model on one GPU.

  python -m jaxpeft memory --config=configs/llama2_7b_qlora.py --target=h100
  python train.py --config=configs/llama2_7b_qlora.py \
      --config.model.source=meta-llama/Llama-2-7b-hf --config.data.train=YOURS.jsonl

QLoRA's settings for 7B models [Dettmers et al. 2023, arXiv:2305.14314, table 9] are
rank 64, alpha 16, a constant learning rate of 2e-4, batch size 16 and gradients clipped
at norm 0.3. This config differs in its rank, 16, and its batch size, 1.
Memory: 5.5 GB, as planned by the compiler. The default model.source gives random
weights of this shape. We have not trained this config, for lack of a GPU.
"""

from jaxpeft import config


def get_config():
  """The config of this run."""
  c = config.base()
  c.model.source = "init:llama2-7b"
  c.model.dtype = "bfloat16"
  c.model.quantize = "nf4"
  c.model.remat = "layer"
  c.adapt.main = dict(name="LoRA", match="layers_.*/(attn|mlp)/.*", rank=16, alpha=16.0)
  c.data.max_tokens = 2048
  c.train.batch_size = 1
  c.optim.lr, c.optim.schedule = 2e-4, "constant"
  c.optim.clip_norm = 0.3
  return c
