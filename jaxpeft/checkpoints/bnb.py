"""Reads and writes NF4 weights in bitsandbytes' format, which transformers uses.

The tensor of a weight [out, in] holds its codes in row-major order, two per byte, the
first one in the high nibble. Further tensors hold the codes of its scales, the scales
of those, both code tables, and a JSON description.
"""

import json

import jax.numpy as jnp
import numpy as np

from jaxpeft.errors import InputError
from jaxpeft.quantization import nf4
from jaxpeft.quantization.dynamic_code import DYNAMIC_MAP

_STATE = ".quant_state.bitsandbytes__nf4"
_PARTS = (".absmax", ".nested_absmax", ".quant_map", ".nested_quant_map", _STATE)
CONFIG = dict(
  quant_method="bitsandbytes",
  load_in_4bit=True,
  load_in_8bit=False,
  bnb_4bit_quant_type="nf4",
  bnb_4bit_use_double_quant=True,
  bnb_4bit_quant_storage="uint8",
)


def check_config(config: dict, place: str):
  """Checks that a `quantization_config` is NF4 with double quantization.

  Args:
    config: the `quantization_config` of a config.json.
    place: path of that file, for the error message.
  Raises:
    InputError: it is something else.
  """
  wrong = {k: config.get(k) for k, x in CONFIG.items() if config.get(k, x) != x}
  # Files of 2023 name no method.
  named = "quant_method" in config or config.get("load_in_4bit") is True
  if wrong or not named:
    raise InputError(
      f"{place}: quantization_config with {wrong or 'no quant_method'} is not "
      "supported; 4-bit NF4 with double quantization is"
    )


def names(tensors) -> set[str]:
  """The names of those tensors that hold the codes of a 4-bit weight."""
  return {n.removesuffix(_STATE) for n in tensors if n.endswith(_STATE)}


def parts(name: str) -> set[str]:
  """The names of the further tensors of a 4-bit weight, without its codes."""
  return {name + part for part in _PARTS}


def read(name: str, get, theirs: tuple[int, int], dtype) -> nf4.NF4:
  """One 4-bit weight as `nf4.NF4`.

  Args:
    name: of the weight.
    get: name -> the tensor as a NumPy array.
    theirs: the shape [out, in] that it must have.
    dtype: of the dequantized weight.
  Raises:
    InputError: it is damaged, or has another shape, block size or code table.
  """
  try:
    state = json.loads(bytes(get(name + _STATE)))
    absmax, nested = get(name + ".absmax"), get(name + ".nested_absmax")
    tables = get(name + ".quant_map"), get(name + ".nested_quant_map")
    offset = np.float32(state["nested_offset"])
    facts = tuple(state["shape"]), state["blocksize"], state["nested_blocksize"]
  except (KeyError, ValueError, TypeError) as e:
    raise InputError(f"the 4-bit weight {name} is damaged: {e!r}") from e
  if facts != (tuple(theirs), nf4.BLOCK, nf4.NESTED):
    raise InputError(
      f"{name} has shape and blocks {facts}, not {(theirs, nf4.BLOCK, nf4.NESTED)}"
    )
  if not all(map(np.array_equal, tables, (nf4.CODE, DYNAMIC_MAP))):
    raise InputError(f"{name} has other code tables than NF4's")
  packed = get(name).reshape(-1)
  codes = np.stack([packed >> 4, packed & 15], -1).reshape(theirs)
  return nf4.NF4(
    nf4.pack(jnp.asarray(codes)),
    jnp.asarray(absmax).reshape(theirs[0], -1),
    jnp.asarray(nested),
    jnp.asarray(offset),
    jnp.dtype(dtype),
  )


def write(name: str, node: nf4.NF4) -> dict[str, np.ndarray]:
  """{name: tensor} of one 4-bit weight; the inverse of `read`."""
  codes = np.asarray(nf4.unpack(node.codes)).reshape(-1, 2)
  state = dict(
    quant_type="nf4",
    blocksize=nf4.BLOCK,
    dtype=str(node.dtype),
    shape=list(node.shape[::-1]),
    nested_blocksize=nf4.NESTED,
    nested_dtype="float32",
    nested_offset=float(node.offset),
  )
  return {
    name: codes[:, :1] << 4 | codes[:, 1:],
    name + ".absmax": np.asarray(node.absmax).reshape(-1),
    name + ".nested_absmax": np.asarray(node.nested),
    name + ".quant_map": nf4.CODE,
    name + ".nested_quant_map": DYNAMIC_MAP,
    name + _STATE: np.frombuffer(json.dumps(state).encode(), np.uint8),
  }
