"""Converts each method to and from PEFT's tensors: LoRA, DoRA, VeRA and (IA)3.

A reader takes (config, tensors, path, `Part`) and returns (adapter, {name: [array or
None for each layer]}), where None stands for the value that changes nothing. A writer
takes ({path: (adapted node, modules)}, {path: (base weight, modules)}, rank) and
returns (config, {module: {leaf: array}}, {path: relative error}). Their matrices are
[out, in], ours are [in, out]. LoRA and DoRA are in `peft_lora`.
"""

from typing import Any

import numpy as np

from jaxpeft import adapters
from jaxpeft.checkpoints import peft_lora
from jaxpeft.errors import InputError

SHARED = ""  # the module of tensors that belong to no module of the model


def _write_vera(nodes, bases, rank):
  if rank is not None or len({n.adapter for n, _ in nodes.values()}) > 1:
    return peft_lora.write(nodes, bases, rank)
  first = [
    peft_lora.one_layer(path, node, 0).frozen for path, (node, _) in nodes.items()
  ]
  a = max((np.asarray(f["a"], np.float32) for f in first), key=len)
  b = max((np.asarray(f["b"], np.float32) for f in first), key=lambda x: x.shape[1])
  tensors = {SHARED: dict(vera_A=a.T, vera_B=b.T)}
  for path, (node, names) in nodes.items():
    for i, name in enumerate(names):
      layer = peft_lora.one_layer(path, node, i)
      own = np.asarray(layer.frozen["a"], np.float32)
      corner = a[: len(own)]
      # Our bound depends on the module's own width, theirs on the widest module's.
      ratio = np.vdot(corner, own) / np.vdot(corner, corner)
      if not np.allclose(own, ratio * corner, atol=1e-2 * np.abs(own).max()):
        raise InputError(
          f"the random matrices of {path} come from another seed; give a rank"
        )
      tensors[name] = dict(
        vera_lambda_d=ratio * np.asarray(layer.theta["d"]),
        vera_lambda_b=np.asarray(layer.theta["e"]),
      )
  adapter = next(iter(nodes.values()))[0].adapter
  config: dict[str, Any] = dict(
    peft_type="VERA",
    bias="none",
    r=adapter.rank,
    projection_prng_key=adapter.seed,
    save_projection=True,
    d_initial=adapter.d_initial,
    vera_dropout=0.0,
    init_weights=True,
  )
  return config, tensors, dict.fromkeys(nodes, 0.0)


def _read_vera(config, tensors, path, part):
  if tensors.fused:
    raise InputError(
      f"{tensors.directory} has VeRA on fused projections, which is not supported; "
      "merge it in PEFT (merge_and_unload) and load that model"
    )
  rows, cols = part.leaf.shape[-2:]
  rank = config["r"]
  a, b = tensors.pop("vera_A", (rank, -1)), tensors.pop("vera_B", (-1, rank))
  layers = len(part.modules)
  leaves: dict[str, list] = dict(a=[a[:, :rows].T] * layers, b=[b[:cols].T] * layers)
  for ours, theirs, size in (
    ("d", "vera_lambda_d", rank),
    ("e", "vera_lambda_b", cols),
  ):
    leaves[ours] = [
      tensors.pop(f"{module}.{theirs}", (size,)) if module in tensors.adapted else None
      for module in part.modules
    ]
  seed = config.get("projection_prng_key", 0)
  return adapters.VeRA(rank=rank, seed=seed), leaves


def _write_ia3(nodes, bases, rank):
  if rank is not None:
    return peft_lora.write(nodes, bases, rank)
  tensors, into = {}, []
  for path, (node, names) in nodes.items():
    for i, name in enumerate(names):
      layer = peft_lora.one_layer(path, node, i)
      own = np.asarray(next(iter(layer.theta.values())))
      out = "out" in layer.theta
      tensors[name] = dict(ia3_l=own[:, None] if out else own[None])
      into += [] if out else [name]
  config: dict[str, Any] = dict(
    peft_type="IA3", feedforward_modules=into, init_ia3_weights=True
  )
  return config, tensors, dict.fromkeys(nodes, 0.0)


def _read_ia3(config, tensors, path, part):
  del config, path
  found = [
    tensors.pop(f"{module}.ia3_l", (-1, -1)) if module in tensors.adapted else None
    for module in part.modules
  ]
  first = next(x for x in found if x is not None)
  on = "input" if first.shape[0] == 1 else "output"
  name = "into" if on == "input" else "out"
  return adapters.IA3(on=on), {name: [x if x is None else x.ravel() for x in found]}


WRITERS = {"VeRA": _write_vera, "IA3": _write_ia3}
READERS = {"LORA": peft_lora.read, "VERA": _read_vera, "IA3": _read_ia3}
