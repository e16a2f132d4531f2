"""QLoRA (r=16, all seven projections) of a LLaMA2-7B-shaped model on one GPU.

  python -m jaxpeft memory --config=configs/llama2_7b_qlora.py --target=h100
  python train.py --config=configs/llama2_7b_qlora.py \
      --config.model.source=meta-llama/Llama-2-7b-hf --config.data.train=YOURS.jsonl

QLoRA's settings [Dettmers et al. 2023, arXiv:2305.14314, table 9] for 7B models: rank
64, alpha 16, lr 2e-4, constant, batch 16, gradients clipped at 0.3; the rank here is
16. It needs 5.5 GB (compiled). model.source has the shape only, with random weights.
Not trained here: no GPU was at hand.
"""

from jaxpeft import config


def get_config():
  """The run."""
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
