"""The adapter methods, their registry, and the functions that apply them to a tree.

This package may import `quantization`, `parallel` and the rooms below those; it knows
nothing about models or runs. To add a method, write a file that follows the contract in
`base`, import its class here, and list it in `METHODS`.
"""

import dataclasses
import re
import typing
from collections.abc import Mapping

from jaxpeft.adapters.attach import attach, detach, is_attached, select
from jaxpeft.adapters.base import Adapted, Adapter, is_adapted
from jaxpeft.adapters.combine import blend
from jaxpeft.adapters.dora import DoRA
from jaxpeft.adapters.full import Full
from jaxpeft.adapters.ia3 import IA3
from jaxpeft.adapters.loftq import LoftQ
from jaxpeft.adapters.lora import LoRA
from jaxpeft.adapters.lora_ga import LoRAGA
from jaxpeft.adapters.lora_one import LoRAOne
from jaxpeft.adapters.lora_xs import LoRAXS
from jaxpeft.adapters.milora import MiLoRA
from jaxpeft.adapters.nora import NoRA
from jaxpeft.adapters.olora import OLoRA
from jaxpeft.adapters.pissa import PiSSA
from jaxpeft.adapters.svf import SVF
from jaxpeft.adapters.svft import SVFT
from jaxpeft.adapters.tree import (
  Count,
  adapt,
  count,
  kept,
  match,
  merge,
  no_reference,
  nodes,
  put_kept,
  reference,
  weight_shape,
)
from jaxpeft.adapters.vera import VeRA
from jaxpeft.errors import InputError, unknown
from jaxpeft.tree import is_stacked

METHODS = {
  method.__name__: method
  for method in (
    DoRA,
    Full,
    IA3,
    LoftQ,
    LoRA,
    LoRAGA,
    LoRAOne,
    LoRAXS,
    MiLoRA,
    NoRA,
    OLoRA,
    PiSSA,
    SVF,
    SVFT,
    VeRA,
  )
}

__all__ = [*METHODS, "METHODS", "Adapted", "Adapter", "Count", "adapt", "count"]
__all__ += ["describe", "from_config", "from_description", "is_adapted", "is_stacked"]
__all__ += ["attach", "blend", "detach", "is_attached", "kept", "match", "merge"]
__all__ += ["no_reference", "nodes", "put_kept", "reference", "select", "weight_shape"]


def from_config(options: Mapping) -> dict[str, Adapter]:
  """The rules {regex: adapter} that `config.adapt` describes, for `match` and `adapt`.

  Args:
    options: {entry: {"name": method, "match": regex, option: value, ...}}. For example,
      {"main": {"name": "LoRA", "match": ".*/attn/q", "rank": 8}} yields
      {".*/attn/q": LoRA(rank=8)}.
  Raises:
    InputError: an entry lacks `name` or `match`, a method or option is unknown, an
      option has the wrong type, or two entries have the same `match`.
  """
  rules = {}
  for entry, fields in options.items():
    where = f"config.adapt.{entry}"
    if not hasattr(fields, "keys"):
      raise InputError(f"{where} is {fields!r}; it needs `name` and `match`")
    fields = dict(fields)
    about = dict(name="a method, e.g. LoRA", match="a regex of paths of weights")
    lacks = [f"{key}: {text}" for key, text in about.items() if key not in fields]
    if lacks:
      raise InputError(
        f"{where} lacks {'; '.join(lacks)}; set --config.adapt.{entry}."
        f"{lacks[0].partition(':')[0]}=..."
      )
    name, pattern = fields.pop("name"), fields.pop("match")
    if not isinstance(pattern, str):
      raise InputError(f"{where}.match is {pattern!r}, no regex")
    if not isinstance(name, str) or name not in METHODS:
      raise unknown(f"method in {where}.name", name, METHODS)
    known = {f.name: f.default for f in dataclasses.fields(METHODS[name])}
    hints = typing.get_type_hints(METHODS[name])
    for field, value in fields.items():
      if field not in known:
        raise unknown(f"option of {name} in {where}", field, known)
      default = known[field]
      number = isinstance(default, float) and type(value) is int
      if value is None and type(None) in typing.get_args(hints[field]):
        continue
      if default is not None and type(value) is not type(default) and not number:
        kind = type(default).__name__
        raise InputError(f"{where}.{field} must be of type {kind}, not {value!r}")
    if pattern in rules:
      raise InputError(f"two entries of config.adapt match {pattern!r}; keep one")
    try:
      rules[pattern] = METHODS[name](**fields)
    except InputError as e:
      raise InputError(f"{where}: {e}") from e
  return rules


def named(options: Mapping, begun: Mapping | None = None) -> dict:
  """`config.adapt` that also names the options whose default has changed.

  Args:
    options: as in `from_config`.
    begun: the same section of the run that goes on, already with these names: they keep
      their values. {} stands for a run that was saved without them; None for a new one.
  """
  out = {}
  for entry, fields in options.items():
    fields = dict(fields) if hasattr(fields, "keys") else fields
    name = fields.get("name") if isinstance(fields, dict) else None
    if not isinstance(name, str) or name not in METHODS:
      out[entry] = fields  # `from_config` says what is wrong
      continue
    defaults = {f.name: f.default for f in dataclasses.fields(METHODS[name])}
    values = {option: defaults[option] for option in METHODS[name].was}
    if begun is not None:
      there = begun.get(entry)
      if not isinstance(there, dict) or there.get("name") != name:
        there = {}
      values = {o: there.get(o, before) for o, before in METHODS[name].was.items()}
    out[entry] = values | fields
  return out


def describe(params) -> dict[str, dict]:
  """{path: {"name": method, option: value}} for every adapted weight, as JSON data.

  Args:
    params: an adapted tree.
  """
  return {
    path: dict(name=type(node.adapter).__name__) | dataclasses.asdict(node.adapter)
    for path, node in nodes(params).items()
    if is_adapted(node)
  }


def from_description(description: Mapping) -> dict[str, Adapter]:
  """The rules {regex: adapter} that adapt the same weights in the same way again.

  Args:
    description: what `describe` returned for an adapted tree.
  """
  return from_config({p: d | dict(match=re.escape(p)) for p, d in description.items()})
