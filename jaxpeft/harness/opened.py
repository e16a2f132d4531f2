"""The model that `--model_args` of the harness name, and what it is asked with."""

import dataclasses
from typing import Any

import jax

from jaxpeft import experiment
from jaxpeft import model as models
from jaxpeft.errors import InputError, unknown
from jaxpeft.export import save
from jaxpeft.parallel import sharding
from jaxpeft.training import workdir


@dataclasses.dataclass(frozen=True)
class Options:
  """The arguments.

  Attributes:
    ckpt: directory of a finished run. Give this or `model`.
    model: a bare model: directory, GGUF file, hub id, or "embedded".
    adapter: for `model`: directory of an adapter in PEFT's or our format.
    dtype: for `model`: default float32 on a CPU, otherwise bfloat16.
    quantize: for `model`: "nf4" holds its weights in 4 bits.
    tensor: size of the mesh's tensor axis; the rest is fsdp.
    batch_size: most contexts at once; "auto" or 0 is as many as memory holds.
    max_batch_size: the same, if batch_size is "auto".
    max_length: most tokens that the model reads at once; default all its positions.
    max_gen_toks: most new tokens of an answer, where a task does not say.
    seed: of the draws, where a task samples.
    device: the harness's --device, which is not used: JAX takes the accelerator that it
      finds, or what the environment variable JAX_PLATFORMS names.
  """

  ckpt: str | None = None
  model: str | None = None
  adapter: str | None = None
  dtype: str | None = None
  quantize: str | None = None
  tensor: int = 1
  batch_size: int = 0
  max_batch_size: int | None = None
  max_length: int = 2**31
  max_gen_toks: int = 256
  seed: int = 0
  device: str | None = None


def options(arguments: dict[str, Any], loaded: bool = False) -> Options:
  """The arguments, checked.

  Args:
    arguments: by name; a None is as if it were not given.
    loaded: whether a model is at hand, and none must be named.
  Raises:
    InputError: an unknown name or a wrong value.
  """
  fields = {x.name: x for x in dataclasses.fields(Options)}
  given = {name: x for name, x in arguments.items() if x is not None}
  for name in given:
    if name not in fields:
      raise unknown("argument in --model_args", name, fields)
  if not loaded and ("ckpt" in given) == ("model" in given):
    raise InputError("give --model_args ckpt=runs/NAME or --model_args model=NAME")
  only = {"adapter", "dtype", "quantize"} & given.keys()
  if "ckpt" in given and only:
    raise InputError(f"--model_args: a run has its own {sorted(only)[0]}; leave it out")
  size = str(given.get("batch_size", "auto"))
  if size.startswith("auto"):
    size = str(given.get("max_batch_size", 0))
  for name, least in _LEAST.items():
    text = size if name == "batch_size" else str(given.get(name, least))
    try:
      value = int(text)
    except ValueError as e:
      raise InputError(f"{name} {text!r} of --model_args is no whole number") from e
    if not least <= value < 2**31 + 1:
      raise InputError(f"{name} {value} of --model_args is below {least}, or too large")
    if name in given or name == "batch_size":
      given[name] = value
  return Options(**given)


_LEAST = dict(tensor=1, batch_size=0, max_length=2, max_gen_toks=1, seed=0)


def read(given: Options) -> models.Model:
  """The model, on a mesh over all devices.

  Raises:
    InputError: it cannot be read; see `experiment.load_run` and `model.load`.
  """
  experiment.enter_mesh(sharding.mesh(tensor=given.tensor))
  if given.ckpt:
    config = workdir.read_config(given.ckpt)
    return experiment.load_run(given.ckpt, config)
  assert given.model is not None
  cpu = jax.default_backend() == "cpu"
  dtype = given.dtype or ("float32" if cpu else "bfloat16")
  base = models.load(given.model, dtype, quantize=given.quantize)
  if given.adapter is None:
    return base
  return base.replace(params=save.load_adapter(base.params, given.adapter))
