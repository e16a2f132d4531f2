"""A model or an adapter out of jaxpeft, and an adapter in."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp

from jaxpeft import adapters, tree
from jaxpeft.checkpoints import adapter as own
from jaxpeft.checkpoints import hf_write, peft
from jaxpeft.errors import InputError, unknown
from jaxpeft.linear import dense, is_node
from jaxpeft.model import Model
from jaxpeft.quantization import nf4


def save_hf(
  model: Model, directory, dtype: str | None = None, quantize: str | None = None
):
  """Writes the model, adapters merged in float32, as a Hugging Face model directory.

  One layer's weight at a time: of sharded models, too, and then the same bytes. Of
  several processes all call it, and process 0 writes.

  Args:
    model: adapted or not.
    directory: where; files of these names are replaced.
    dtype: of the weights; None is the model's.
    quantize: "nf4" writes the projections in bitsandbytes' 4-bit format: those that
      are in 4 bits as they are, merged ones quantized anew.
  """
  if quantize not in (None, "", "nf4"):
    raise unknown("quantize", quantize, ("nf4",))
  to = jnp.dtype(dtype or model.transformer.dtype)

  def finish(path, w):
    w = adapters.merge(w, to)
    if quantize and nf4.takes(path) and not is_node(w):
      nf4.check(path, w.shape)
      w = nf4.quantize(w)
    if quantize and is_node(w):
      return dataclasses.replace(w, dtype=to)
    return dense(w).astype(to)

  hf_write.save(directory, model.config, model.params, model.tokenizer, finish)


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
  """Writes what `adapt` and training added to a base.

  Args:
    params: an adapted tree.
    directory: where.
    format: "jaxpeft", every method, as small as its theta; or "peft", which Hugging
      Face PEFT opens; see `checkpoints.peft.save`.
    key: the one that `adapt` was given, for "jaxpeft"; loading makes the same frozen
      factors with it, and is refused where they differ.
    base, rank, base_name: for "peft", see there.
  Returns:
    {path: relative error of the update}: above 0 for conversions to a lower rank, and
    for those of PiSSA, MiLoRA and OLoRA over a base that is rounded to bfloat16.
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
  """Refuses what `load_adapter` could not make again from a base, a key and theta."""
  nodes = adapters.nodes(params)
  if any(adapters.is_attached(node) for node in nodes.values()):
    raise InputError("several adapters are attached; save each before attaching it")
  found = {path: node for path, node in nodes.items() if adapters.is_adapted(node)}
  if not found:
    raise InputError("nothing is adapted: there is no adapter to save")
  for path, node in found.items():
    node.adapter.check(path, adapters.weight_shape(path, node))
    if isinstance(node.adapter, adapters.VeRA) and not node.adapter.owns(node.frozen):
      raise InputError(
        f"VeRA on {path} came from PEFT with random matrices of its own, which this "
        'format does not hold; save it with format="peft"'
      )


def load_adapter(params, directory):
  """A base's `params` with the adapter in a directory: jaxpeft's format, or PEFT's.

  Raises:
    InputError: damaged files, or an adapter of another base.
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
  adapted = adapters.adapt(params, rules, key, gradients={})
  adapted = own.load_kept(directory, adapted)
  trainable, frozen = tree.partition(adapted, tree.trainable_mask(adapted))
  mark = own.fingerprint(frozen)
  return tree.combine(own.load(directory, trainable, mark), frozen)
