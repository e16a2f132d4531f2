"""Which tensors of Hugging Face's models our leaves stand for, for adapters of PEFT."""

import re
from typing import Any, NamedTuple

import jax

from jaxpeft import adapters
from jaxpeft.checkpoints import hf_names
from jaxpeft.checkpoints.families import FAMILIES
from jaxpeft.checkpoints.peft_tensors import Tensors
from jaxpeft.errors import InputError
from jaxpeft.transformer.config import ModelConfig

EMBED, HEAD = "model.embed_tokens", "lm_head"
_PRE, _POST = {"attn", "mlp"}, {"attn_post", "mlp_post"}  # norms, see `families`


class Part(NamedTuple):
  """One leaf of our parameters and the modules that it stands for.

  Attributes:
    leaf: array or weight node; a stack if its path starts with layers_.
    modules: their names, one for each layer; one if the leaf is not a stack.
    tensor: the name of the tensor inside these modules, "weight" or "bias".
    linear: whether the modules are projections; the head is one.
  """

  leaf: Any
  modules: list[str]
  tensor: str
  linear: bool

  def theirs(self, x):
    """One layer of the leaf in their orientation, or the reverse: [out, in]."""
    return x.T if self.linear else x


def check_family(config: ModelConfig):
  """Raises InputError if `save` would write names that the family's model has not."""
  fused = FAMILIES[config.family].fused
  if fused:
    raise InputError(
      f"adapters of {config.family} cannot be saved in PEFT's format: transformers "
      f"fuses its projections ({', '.join(fused)}), and jaxpeft adapts their parts; "
      "export merged weights instead (--format=hf)"
    )


def parts(params) -> dict[str, Part]:
  """{path: `Part`} of the leaves that an adapter of PEFT can change.

  Args:
    params: of a Transformer; leaves are arrays or weight nodes.
  """
  every = hf_names.modules(params)
  found = {
    p: Part(x, names, "weight", True) for p, (x, names) in every.items() if names
  }
  for path, (leaf, names) in every.items():
    modules = [] if names else _others(path, every, found)
    if modules:
      bias = path.partition("/")[2].startswith("bias/")
      found[path] = Part(leaf, modules, "bias" if bias else "weight", False)
  return {path: found[path] for path in every if path in found}


def _others(path: str, every, found) -> list[str]:
  """The modules of a leaf that is no projection; [] if they are not known."""
  if path in ("embed", "final_norm"):
    return [{"embed": EMBED, "final_norm": "model.norm"}[path]]
  group, kind, name = [*path.split("/"), "", ""][:3]
  if kind == "bias":
    owners = (f"{group}/{k}/{name}" for k in ("attn", "mlp"))
    return next((found[p].modules for p in owners if p in found), [])
  norms = {p.rpartition("/")[2] for p in every if p.startswith(f"{group}/norm/")}
  theirs = _norm(name, norms - {"q", "k"}) if kind == "norm" else None
  modules = next((x.modules for p, x in found.items() if p.startswith(f"{group}/")), [])
  layers = [re.match(r"model\.layers\.\d+\.", module) for module in modules]
  known = theirs and len(layers) == jax.tree.leaves(every[path][0])[0].shape[0]
  return [f"{m[0]}{theirs}" for m in layers if m] if known else []


def _norm(name: str, norms: set[str]) -> str | None:
  """The module of a norm; None if families name it differently.

  Args:
    name: ours.
    norms: all norms of a layer but those of heads, which tell families apart.
  """
  theirs = {
    family.tensor(f"norm/{name}")[0].removesuffix(".weight")
    for family in FAMILIES.values()
    if norms
    == (_PRE if family.facts.get("pre_norms", True) else set())
    | (_POST if family.facts.get("post_norms") else set())
  }
  return theirs.pop() if len(theirs) == 1 else None


def split_fused(tensors: Tensors, parts: dict[str, Part]):
  """Divides the tensors of fused projections, e.g. of Phi-3, among ours.

  A LoRA of a fused projection is one of each part, with the same a and a part of b.

  Args:
    tensors: of an adapter's file; they are renamed.
    parts: see `parts`.
  """
  fused = {k: v for family in FAMILIES.values() for k, v in family.fused.items()}
  for name, inside in fused.items():
    name = name.removesuffix(".weight")
    groups = {path.partition("/")[0] for path in parts}
    for group in sorted(groups) if tensors.has_module(name) else []:
      own = [parts[p] for p in (f"{group}/{x}" for x in inside) if p in parts]
      for modules in zip(*(part.modules for part in own), strict=True):
        layer = ".".join(modules[0].split(".")[:3])
        sizes = [part.leaf.shape[-1] for part in own]
        tensors.split(f"{layer}.{name}", dict(zip(modules, sizes, strict=True)))


def is_tied(params) -> bool:
  """Whether the output head is the embedding itself."""
  return "head" not in params


def depth(path: str, leaf) -> int:
  """The number of layers of a leaf; 1 if it is not a stack."""
  return leaf.shape[0] if adapters.is_stacked(path) else 1
