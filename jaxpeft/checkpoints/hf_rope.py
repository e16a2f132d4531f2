"""Rotary embeddings in a `config.json`, as transformers 4 and 5 write them."""

from typing import Any

import numpy as np

from jaxpeft.checkpoints.families import Family, rotates
from jaxpeft.checkpoints.hf_fields import Fields, is_number
from jaxpeft.errors import InputError, unknown
from jaxpeft.transformer.config import ModelConfig, Rope
from jaxpeft.transformer.rope import KINDS

_ORIGINAL = "original_max_position_embeddings"
# Kind -> (options that it must have, options that it may have).
_OPTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
  "default": ((), ()),
  "linear": (("factor",), ()),
  "dynamic": (("factor", _ORIGINAL), ()),
  "llama3": (("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL), ()),
  "yarn": (
    ("factor", _ORIGINAL),
    (
      "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
      "truncate",
    ),
  ),
  "longrope": (
    ("factor", _ORIGINAL, "short_factor", "long_factor"), ("attention_factor",)
  ),
}  # fmt: skip
_OTHER_NAMES = {"su": "longrope", "mrope": "default"}
_PLACES = ("rope_parameters", "rope_scaling")
# Options that some files have for kinds that do not use them.
_UNUSED = (
  _ORIGINAL, "factor", "type", "rope_type", "max_position_embeddings", "mscale",
  "mscale_all_dim", "beta_fast", "beta_slow", "attn_factor", "finetuned",
  "high_freq_factor", "low_freq_factor", "short_factor", "long_factor",
  "short_mscale", "long_mscale", "attention_factor", "truncate",
)  # fmt: skip


def read(f: Fields, family: Family, local: tuple[bool, ...], head_dim: int) -> dict:
  """The fields ropes, rope_of and query_growth of a `ModelConfig`.

  Args:
    f: the config.json.
    family: its row in the table.
    local: for each layer, whether it has a window.
    head_dim: elements of a head.
  Raises:
    InputError: a kind, an option or a value is not supported.
  """
  given = next((k for k in _PLACES if f.values.get(k)), _PLACES[0])
  options = f.object(given)
  nested = {k: v for k, v in options.items() if k.endswith("_attention")}
  wide = nested.get("full_attention", {} if nested else options)
  ropes = [_rope(f, family, wide or {}, "rope_theta", head_dim)]
  of = ()
  if family.local_rope:
    near = nested.get("sliding_attention") or {}
    theta = "rope_local_base_freq" if f.get("rope_local_base_freq") else "rope_theta"
    ropes.append(_rope(f, family, near, theta, head_dim))
    of = tuple(map(int, local))
  elif nested and nested.get("sliding_attention", wide) != wide:
    raise InputError(f"{f.place}: rope_parameters differ between kinds of layers")
  without = _without(f, family, len(local))
  if any(without):
    ropes.append(Rope(ropes[0].theta, "none", share=ropes[0].share))
    of = tuple(map(int, without))
  o = Fields(wide or {}, {}, f"{f.place}, rope_parameters")
  beta = o.number("llama_4_scaling_beta", 0)
  growth = (beta, o.integer(_ORIGINAL)) if beta else None
  if len(set(ropes)) == 1:
    return dict(ropes=(ropes[0],), query_growth=growth)
  return dict(ropes=tuple(ropes), rope_of=of, query_growth=growth)


def _without(f: Fields, family: Family, depth: int) -> list[bool]:
  """For each layer, whether it has no rotary embedding (SmolLM3)."""
  if "no_rope_layers" not in family.defaults:
    return [False] * depth
  return [not x for x in rotates(f)]


def _rope(f: Fields, family: Family, options: dict, theta: str, head_dim: int) -> Rope:
  """One `Rope` from a JSON object such as rope_scaling."""
  if not isinstance(options, dict):
    raise InputError(f"{f.place}: rope_parameters has {options!r}, not a JSON object")
  o = Fields(options, {}, f"{f.place}, rope_parameters")
  base = o.positive("rope_theta", f.positive(theta, 10_000.0))
  if base <= 1:
    raise InputError(f"{f.place}: {theta} is {base}, but must be above 1")
  kind = o.get("rope_type", o.get("type", "default"))
  kind = _OTHER_NAMES.get(kind, kind) if isinstance(kind, str) else kind
  if family.fused and kind == "yarn":
    kind = "longrope"  # early Phi-3 files say yarn but mean longrope
  if not isinstance(kind, str) or kind not in _OPTIONS:
    raise unknown(f"rope_type in {f.place}", kind, _OPTIONS)
  share = o.number("partial_rotary_factor", f.number("partial_rotary_factor", 1.0))
  if share != 1 and not family.fused:
    raise InputError(
      f"{f.place}: field 'partial_rotary_factor' = {share} is not supported for "
      f"model_type {f.values.get('model_type')!r}"
    )
  if not 0 < share <= 1 or int(head_dim * share) < 2:
    raise InputError(f"{f.place}: partial_rotary_factor is {share}, not within 0 to 1")
  # transformers rounds the number of rotated elements down.
  share = int(head_dim * share) / head_dim
  needed, optional = _OPTIONS[kind]
  allowed = {*needed, *optional, *_UNUSED, "rope_theta", "partial_rotary_factor"}
  strange = [k for k, x in options.items() if k not in allowed and x]
  strange = [k for k in strange if k != "llama_4_scaling_beta"]
  if strange:
    raise InputError(
      f"{f.place}: rope_type {kind!r} with {sorted(strange)} is not supported"
    )
  positions = f.integer("max_position_embeddings")
  values: dict[str, Any] = {}
  for name in needed:
    values[name] = _option(f, o, kind, name, positions, int(head_dim * share) // 2)
  for name in optional:
    if name == "truncate" and o.get(name) is not None:
      values[name] = o.boolean(name)
    elif o.get(name) is not None:
      values[name] = o.number(name)
  if kind == "dynamic":
    # transformers lets the base grow beyond max_position_embeddings.
    values[_ORIGINAL] = positions
  if kind == "llama3" and values["low_freq_factor"] >= values["high_freq_factor"]:
    raise InputError(f"{f.place}: low_freq_factor is not below high_freq_factor")
  rope = Rope(base, kind, tuple(sorted(values.items())), share)
  _check(rope, head_dim, o.place)
  return rope


def _check(rope: Rope, head_dim: int, place: str):
  """Refuses options whose frequencies cannot be computed."""
  if rope.kind == "default":
    return
  long = np.array([2**20], np.int32)
  try:
    freq, factor = KINDS[rope.kind](rope, int(head_dim * rope.share), long)
  except (ArithmeticError, ValueError) as e:
    raise InputError(f"{place}: rope_type {rope.kind!r} cannot be computed: {e}") from e
  if not (np.isfinite(freq).all() and np.isfinite(factor)):
    raise InputError(f"{place}: rope_type {rope.kind!r} gives infinite frequencies")


def _option(f: Fields, o: Fields, kind: str, name: str, positions: int, count: int):
  """A value that a kind needs."""
  if name == _ORIGINAL:
    outside = f.get(name) and f.integer(name)
    return outside or o.integer(name, positions)
  if name == "factor" and kind in ("longrope", "yarn"):
    old = _option(f, o, kind, _ORIGINAL, positions, count)
    return o.positive(name, positions / old)
  if name in ("short_factor", "long_factor"):
    given = o.get(name)
    fits = isinstance(given, list) and len(given) == count
    if not fits or not all(is_number(x) and x > 0 for x in given):
      raise InputError(f"{o.place}: {name} is not a list of {count} positive numbers")
    return tuple(map(float, given))
  return o.positive(name)


def write(c: ModelConfig, family: Family) -> dict:
  """The fields of a config.json for the rotary embeddings; the inverse of `read`.

  They are those of transformers 4, which transformers 5 reads, too. Only for layers
  with embeddings of their own, version 5 needs `rope_parameters` besides.
  """
  first = c.ropes[0]
  options = {k: list(x) if isinstance(x, tuple) else x for k, x in first.options}
  original = options.get(_ORIGINAL)
  scaling = dict(rope_type=first.kind) | options
  hf: dict[str, Any] = dict(max_position_embeddings=c.max_positions)
  if first.kind == "dynamic":
    hf["max_position_embeddings"] = scaling.pop(_ORIGINAL)
  if c.query_growth:
    scaling["llama_4_scaling_beta"] = c.query_growth[0]
  used = first.kind != "default" or c.query_growth
  hf |= dict(rope_theta=first.theta, rope_scaling=scaling if used else None)
  if family.local_rope:
    near = c.ropes[-1].theta
    hf["rope_parameters"] = dict(
      full_attention=scaling | dict(rope_theta=first.theta),
      sliding_attention=dict(rope_type="default", rope_theta=near),
    )
    hf |= dict(rope_local_base_freq=near) if near != first.theta else {}
  if "no_rope_layers" in family.defaults:
    layers = c.rope_of or (0,) * c.depth
    hf["no_rope_layers"] = [int(c.ropes[i].kind != "none") for i in layers]
  if family.fused:  # Phi-3; its class takes no other options
    if used:
      names = ("short_factor", "long_factor", "attention_factor")
      hf["rope_scaling"] = dict(type=first.kind) | {
        k: options[k] for k in names if k in options
      }
    hf["partial_rotary_factor"] = first.share
    hf[_ORIGINAL] = original or c.max_positions
  return hf
