"""LoRA-XS (r=64, all seven projections) of SmolLM2-135M-Instruct.

  python train.py --config=configs/smollm2_lora_xs.py
  python train.py --config=configs/smollm2_lora_xs.py:topics --workdir=runs/topics

Model: SmolLM2-135M-Instruct [Ben Allal et al. 2025, arXiv:2502.02737], Apache-2.0, as a
4-bit GGUF file; docs/real_model.md says how to get it and the data. From the hub:
--config.model.source=HuggingFaceTB/SmolLM2-135M-Instruct.
Data: GSM8K, or with ":topics" the classes of dictionary definitions.
Hardware: two CPU cores and 2 GB.
Expected: topics 78.0 % of 200 problems (one seed; base 0 %), loss 7.84 -> 0.14.
The rates are the lowest of three tried on both; GSM8K was not run to the end.
"""

import pathlib
import runpy

LORA = runpy.run_path(str(pathlib.Path(__file__).with_name("smollm2_lora.py")))
RATES = dict(gsm8k=1e-3, topics=3e-3)  # learning rates


def get_config(data="gsm8k"):
  """The run of smollm2_lora.py on that data, with this method."""
  c = LORA["get_config"](data)
  c.adapt.main = dict(
    name="LoRAXS", match="layers_.*/(attn|mlp)/.*", rank=64, alpha=64.0, iterations=4
  )
  c.optim.lr = RATES[data]
  return c
