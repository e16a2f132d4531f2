"""Parameter-efficient fine-tuning in JAX. The names here are what notebooks use."""

from jaxpeft.adapters import SVFT, Adapted, Adapter, Full, LoRA, adapt, count, merge
from jaxpeft.build import load_run
from jaxpeft.errors import InputError
from jaxpeft.export import save_hf
from jaxpeft.model import Model, load, shapes
from jaxpeft.partitions import combine, partition, trainable_mask
from jaxpeft.transformer import ModelConfig, Transformer
from jaxpeft.zoo import SHAPES

__all__ = [
  "SHAPES", "SVFT", "Adapted", "Adapter", "Full", "InputError", "LoRA", "Model",
  "ModelConfig", "Transformer", "adapt", "combine", "count", "load",
  "load_run", "merge", "partition", "save_hf", "shapes", "trainable_mask",
]  # fmt: skip
