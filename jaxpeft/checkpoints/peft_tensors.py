"""The tensors of a PEFT adapter, under one name for all the ways they are stored."""

import pathlib
import re

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from jaxpeft.errors import InputError

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
_BASE = "base_model."
# Wrappers of torch that were not taken off before saving.
_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module)\.")
_LEAVES = (
  "lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|"
  "vera_lambda_b|vera_lambda_d|vera_A|vera_B|ia3_l|trainable_tokens_delta|"
  "modules_to_save"
)
# Files that hold a whole state dict have the adapter's own name after a leaf's name.
_ADAPTER = re.compile(rf"(^|\.)({_LEAVES})\.(?!weight$|bias$)[^.]+(?=\.|$)")
_BARE = re.compile(r"(layers|embed_tokens|norm)\.")
_FACTORS = re.compile(
  r"(.+)\.(?:lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_magnitude_vector|"
  r"lora_embedding_A|lora_embedding_B|vera_lambda_b|vera_lambda_d|ia3_l)"
)


def standard_name(key: str) -> str:
  """The name of a tensor relative to the base model, e.g. "lm_head.lora_A.weight".

  It has no prefix, no adapter name and no wrapper. Adapters of a model without a head,
  e.g. `LlamaModel`, have no "model." in their names; it is added.

  Args:
    key: of a file that PEFT 0.2 to 0.21 wrote, or of a state dict.
  """
  key = _relative(key)
  key = _ADAPTER.sub(r"\1\2", key).replace(".modules_to_save.", ".")
  key = re.sub(r"\.(token_adapter\.base_layer|original_module)\.", ".base_layer.", key)
  key = key.removesuffix(".weight") if ".lora_magnitude_vector" in key else key
  return f"model.{key}" if _BARE.match(key) else key


def _relative(key: str) -> str:
  return _WRAPPERS.sub(r"\1", key).removeprefix(PREFIX).removeprefix(_BASE)


class Tensors:
  """The tensors of an adapter's file, which remembers those that nobody has read.

  Attributes:
    directory: where the file is, for error messages.
    adapted: the names of the modules that have factors in the file.
    fused: {our module: the module of the file whose tensors it shares}, see `split`.
    bare: whether the names lack "model.", as those of adapters of `LlamaModel` do.
  """

  def __init__(self, directory: pathlib.Path, flat: dict):
    """Names the tensors of {key: array}; raises InputError if two get one name."""
    self.directory, self._keys, self._left = directory, {}, set(flat)
    self._flat, self._rows, self.fused = flat, {}, {}
    for key in sorted(flat):
      name = standard_name(key)
      if name in self._keys:
        raise InputError(
          f"{directory}/{WEIGHTS} holds {self._keys[name]} and {key}, i.e. several "
          "adapters; save each of them alone with PEFT's save_pretrained"
        )
      self._keys[name] = key
    found = map(_FACTORS.fullmatch, self._keys)
    self.adapted = {match[1] for match in found if match}
    self.bare = any(_BARE.match(_relative(key)) for key in flat)

  def split(self, fused: str, pieces: dict[str, int]):
    """Divides the tensors of a module among modules that it computes at once.

    Args:
      fused: name of a module of the file, e.g. "model.layers.0.self_attn.qkv_proj".
      pieces: {module: its number of outputs}, in the order of the outputs.
    """
    self.fused |= dict.fromkeys(pieces, fused)
    for name in [name for name in self._keys if name.startswith(f"{fused}.")]:
      key, leaf, start = self._keys.pop(name), name.removeprefix(fused), 0
      shape = self._flat[key].shape
      whole = leaf in (".lora_A.weight", ".vera_lambda_d") or shape[:1] in ((), (1,))
      if not whole and shape[0] != sum(pieces.values()):
        raise InputError(
          f"{self.directory}/{WEIGHTS}: {key} has {shape[0]} rows; the model needs "
          f"{sum(pieces.values())}"
        )
      for module, size in pieces.items():
        self._keys[module + leaf] = key
        if not whole:
          self._rows[module + leaf] = slice(start, start + size)
        start += size
    if fused in self.adapted:
      self.adapted = self.adapted - {fused} | set(pieces)

  def has_module(self, name: str) -> bool:
    """Whether a module whose name ends with this one has tensors."""
    return any(f".{name}." in key for key in self._flat)

  def has(self, name: str) -> bool:
    """Whether there is a tensor of this name."""
    return name in self._keys

  def pop(self, name: str, shape=None) -> np.ndarray:
    """Like `peek`, but the tensor is then no longer unread."""
    x = self.peek(name, shape)
    self._left.discard(self._keys[name])
    return x

  def peek(self, name: str, shape=None) -> np.ndarray:
    """The tensor of this name in float32.

    Args:
      name: see `standard_name`.
      shape: what it must be; a -1 fits any size; None fits any shape.
    Raises:
      InputError: it is missing, has another shape, or holds other numbers than finite
        floating-point numbers.
    """
    if name not in self._keys:
      raise InputError(f"{self.directory}/{WEIGHTS} has no tensor {PREFIX}{name}")
    key = self._keys[name]
    x = self._flat[key]
    x, place = (
      x[self._rows[name]] if name in self._rows else x,
      f"{self.directory}/{WEIGHTS}: {key}",
    )
    fits = shape is None or (
      x.ndim == len(shape)
      and all(n in (-1, m) for n, m in zip(shape, x.shape, strict=True))
    )
    if not fits:
      want = ", ".join("r" if n == -1 else str(n) for n in shape or ())
      raise InputError(f"{place} is {list(x.shape)}; the model needs [{want}]")
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise InputError(f"{place} holds {x.dtype} instead of floating-point numbers")
    x = np.asarray(x, np.float32)
    if not np.isfinite(x).all():
      raise InputError(f"{place} holds infinities or NaN: the file is damaged")
    return x

  def check_empty(self):
    """Raises InputError if a tensor was not read."""
    left = sorted(self._left)
    if left:
      raise InputError(
        f"{self.directory}/{WEIGHTS} has {len(left)} tensors with no place in this "
        f"model, e.g. {left[0]}"
      )


def read(directory: pathlib.Path) -> Tensors:
  """The tensors of the adapter in a directory.

  Raises:
    InputError: the file is missing or damaged, or is a pickle.
  """
  file = directory / WEIGHTS
  pickled = directory / "adapter_model.bin"
  if not file.exists() and pickled.exists():
    raise InputError(
      f"{pickled} is a pickle, which is not read because it could run any program; "
      "open the adapter in PEFT and save it again (save_pretrained writes safetensors)"
    )
  try:
    return Tensors(directory, safetensors.numpy.load_file(file))
  except InputError:
    raise
  except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as e:
    raise InputError(f"cannot read the PEFT adapter in {directory}: {e!r}") from e
