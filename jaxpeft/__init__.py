"""Parameter-efficient fine-tuning in JAX. The names here are what notebooks use.

A name's module is imported when the name is first used (PEP 562), so that a command
starts at once; type checkers and editors read the imports below.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from jaxpeft.adapters import (
    IA3,
    SVF,
    SVFT,
    Adapted,
    Adapter,
    DoRA,
    Full,
    LoftQ,
    LoRA,
    LoRAGA,
    LoRAOne,
    LoRAXS,
    MiLoRA,
    NoRA,
    OLoRA,
    PiSSA,
    VeRA,
    adapt,
    attach,
    blend,
    count,
    detach,
    merge,
    select,
  )
  from jaxpeft.errors import InputError
  from jaxpeft.experiment import load_run
  from jaxpeft.export.save import load_adapter, save_adapter, save_gguf, save_hf
  from jaxpeft.model import Model, load, shapes
  from jaxpeft.objectives.gradients import gradients
  from jaxpeft.parallel.sharding import mesh
  from jaxpeft.transformer.config import ModelConfig
  from jaxpeft.transformer.decoder import Transformer
  from jaxpeft.transformer.shapes import SHAPES
  from jaxpeft.tree import combine, partition, trainable_mask

_MODULES = {
  "adapters": "SVF SVFT Adapted Adapter DoRA Full IA3 LoftQ LoRA LoRAGA LoRAOne LoRAXS "
  "MiLoRA NoRA OLoRA PiSSA VeRA adapt attach blend count detach merge select",
  "errors": "InputError",
  "experiment": "load_run",
  "export.save": "load_adapter save_adapter save_gguf save_hf",
  "model": "Model load shapes",
  "parallel.sharding": "mesh",
  "objectives.gradients": "gradients",
  "transformer.config": "ModelConfig",
  "transformer.decoder": "Transformer",
  "transformer.shapes": "SHAPES",
  "tree": "combine partition trainable_mask",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}
__all__ = sorted(_HOME)


def __getattr__(name: str):
  if name not in _HOME:
    raise AttributeError(f"module 'jaxpeft' has no attribute {name!r}")
  return getattr(importlib.import_module(f"jaxpeft.{_HOME[name]}"), name)


def __dir__():
  return __all__
