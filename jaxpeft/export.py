"""A model out of jaxpeft: merged, as safetensors that transformers opens."""

import jax

from jaxpeft import adapters
from jaxpeft.checkpoints import hf
from jaxpeft.model import Model


def save_hf(model: Model, directory, dtype: str | None = None):
  """Writes the model, adapters merged in float32, as a Hugging Face model directory.

  Args:
    model: adapted or not.
    directory: where; files of these names are replaced.
    dtype: of the weights; None is the model's.
  """
  dtype = dtype or model.transformer.dtype
  params = jax.tree.map(lambda x: x.astype(dtype), adapters.merge(model.params, dtype))
  hf.save(directory, model.config, params, model.tokenizer)
