"""Saves models and adapters for other libraries, and loads adapters."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp

from jaxpeft import adapters, console, tree
from jaxpeft.checkpoints import adapter as own
from jaxpeft.checkpoints import gguf_write, hf_write, peft
from jaxpeft.checkpoints.params_reader import ParamsReader
from jaxpeft.errors import InputError, unknown
from jaxpeft.linear import dense, is_node
from jaxpeft.model import Model
from jaxpeft.objectives import head
from jaxpeft.quantization import nf4

_DTYPES = ("bfloat16", "float16", "float32")


def save_hf(
  model: Model, directory, dtype: str | None = None, quantize: str | None = None
):
  """Writes a model as a Hugging Face directory, its adapters merged in float32.

  Only one weight of one layer is gathered at a time; a sharded model gives the same
  bytes. If there are several processes, all must call this, and process 0 writes.

  Args:
    model: a model, adapted or not.
    directory: where to write; existing files of the same names are replaced.
    dtype: dtype of the written weights; None is the model's.
    quantize: "nf4" writes the projections in the 4-bit format of bitsandbytes. Weights
      already in NF4 are written as they are; merged ones are quantized again.
  Raises:
    InputError: an unknown `quantize`, or a weight that NF4 cannot hold.
  """
  if quantize not in (None, "", "nf4"):
    raise unknown("quantize", quantize, ("nf4",))
  if dtype not in (None, "", *_DTYPES):
    raise unknown("dtype of weights", dtype, _DTYPES)
  to = jnp.dtype(dtype or model.transformer.dtype)

  def finish(path, w):
    w = adapters.merge(w, to)
    if quantize and nf4.takes(path) and not is_node(w):
      nf4.check(path, w.shape)
      w = nf4.quantize(w)
    if quantize and is_node(w):
      return dataclasses.replace(w, dtype=to)
    return dense(w).astype(to)

  if head.HEAD in model.params and model.config.pad_id in model.config.eos_ids:
    console.note(
      "note: transformers scores the last token that is no padding, and in this model "
      "padding is the end of text; so it scores the token before the end, for which "
      "objective.pool='hf' trains. Otherwise give it another padding token"
    )
  hf_write.save(directory, model.config, model.params, model.tokenizer, finish)


def save_gguf(model: Model, path, dtype: str | None = None):
  """Writes a model as a GGUF file for llama.cpp, its adapters merged in float32.

  Only one weight of one layer is gathered at a time. If there are several processes,
  all must call this, and process 0 writes.

  Args:
    model: a model, adapted or not.
    path: of the file; it is replaced.
    dtype: "float32", "float16", "bfloat16" or "q8_0" (blocks of 32 integers of 8 bits
      with a scale), of the matrices; None is the model's.
  Raises:
    InputError: an unknown dtype, or a model or tokenizer that GGUF cannot hold.
  """
  if head.HEAD in model.params:
    raise InputError("GGUF holds no reward head; export the model with --format=hf")
  reader = ParamsReader(
    model.config,
    model.params,
    lambda path, w: dense(adapters.merge(w, jnp.float32)).astype(jnp.float32),
  )
  to = dtype or jnp.dtype(model.transformer.dtype).name
  gguf_write.write(path, model.config, reader, model.tokenizer, to, model.name)


def save_adapter(
  params,
  directory,
  format: str = "jaxpeft",
  *,
  key=None,
  base=None,
  rank: int | None = None,
  base_name: str = "",
) -> dict[str, float]:
  """{path: relative error of the saved update}, after writing an adapter's files.

  Args:
    params: an adapted tree.
    directory: where to write.
    format: "jaxpeft" holds any method and stores little more than theta; "peft" can be
      opened by Hugging Face PEFT, see `checkpoints.peft.save`.
    key: for "jaxpeft": the key given to `adapt`. Loading makes the frozen factors again
      from it, and fails if they differ.
    base, rank, base_name: for "peft": see `checkpoints.peft.save`.
  Returns:
    {path: error}. Errors are above 0 for conversions to a lower rank, and for
    conversions of PiSSA, MiLoRA and OLoRA over a base rounded to bfloat16.
  Raises:
    InputError: an unknown format, or an adapter that the format cannot hold.
  """
  if format == "peft":
    return peft.save(directory, params, base, rank, base_name)
  if format != "jaxpeft":
    raise unknown("format", format, ("jaxpeft", "peft"))
  _check_savable(params)
  trainable, frozen = tree.partition(params, tree.trainable_mask(params))
  mark = own.fingerprint(frozen)
  meta = own.describe(params, key, mark)
  own.save(directory, trainable, meta, adapters.kept(params))
  return dict.fromkeys(adapters.describe(params), 0.0)


def _check_savable(params):
  """Rejects adapters that `load_adapter` cannot rebuild from base, key and theta."""
  nodes = adapters.nodes(params)
  if any(adapters.is_attached(node) for node in nodes.values()):
    raise InputError("several adapters are attached; save each before attaching it")
  found = {path: node for path, node in nodes.items() if adapters.is_adapted(node)}
  if not found:
    raise InputError("nothing is adapted, so there is no adapter to save; call adapt")
  for path, node in found.items():
    node.adapter.check(path, adapters.weight_shape(path, node))
    if isinstance(node.adapter, adapters.VeRA) and not node.adapter.owns(node.frozen):
      raise InputError(
        f"VeRA on {path} came from PEFT with random matrices of its own, which format "
        '"jaxpeft" cannot store; save it with format="peft"'
      )


def load_adapter(params, directory):
  """`params` with the adapter in a directory, in jaxpeft's format or PEFT's.

  Args:
    params: parameters of the base model, not adapted.
    directory: what `save_adapter` or Hugging Face PEFT wrote.
  Raises:
    InputError: damaged files, or an adapter that belongs to another base.
  """
  directory = pathlib.Path(directory)
  if (directory / peft.CONFIG).exists():
    return peft.load(directory, params)
  meta = own.read_meta(directory)
  try:
    rules = adapters.from_description(meta["adapters"])
    key = jax.random.wrap_key_data(jnp.array(meta["key"], jnp.uint32))
  except (KeyError, TypeError, ValueError) as e:
    raise InputError(f"{directory} does not say which adapters it holds: {e}") from e
  if head.HEAD in meta["adapters"]:
    params = head.added(params)
  adapted = adapters.adapt(params, rules, key, gradients={})
  adapted = own.load_kept(directory, adapted)
  trainable, frozen = tree.partition(adapted, tree.trainable_mask(adapted))
  mark = own.fingerprint(frozen)
  return tree.combine(own.load(directory, trainable, mark), frozen)
