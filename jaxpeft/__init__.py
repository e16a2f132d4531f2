"""Parameter-efficient fine-tuning in JAX. The names here are what notebooks use."""

import importlib

_WHERE = {
  "adapters": "DoRA Full IA3 LoftQ LoRA LoRAGA LoRAOne LoRAXS MiLoRA NoRA OLoRA PiSSA "
  "SVF SVFT VeRA Adapted Adapter adapt attach blend count detach merge select",
  "build": "load_run",
  "errors": "InputError",
  "export": "load_adapter save_adapter save_hf",
  "model": "Model load shapes",
  "training": "gradients",
  "partitions": "combine partition trainable_mask",
  "sharding": "mesh",
  "transformer": "ModelConfig Transformer",
  "zoo": "SHAPES",
}
_HOME = {name: module for module, names in _WHERE.items() for name in names.split()}
__all__ = sorted(_HOME)


def __getattr__(name: str):
  """Imports a name's module when it is first used, so that a command starts at once."""
  if name not in _HOME:
    raise AttributeError(f"module 'jaxpeft' has no attribute {name!r}")
  return getattr(importlib.import_module(f"jaxpeft.{_HOME[name]}"), name)


def __dir__():
  return __all__
