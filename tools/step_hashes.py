"""Hashes of lowered programs, to prove that a refactoring changes no computation.

  python tools/step_hashes.py --check             compares with tools/step_hashes.json
  python tools/step_hashes.py --write             writes that file
  python tools/step_hashes.py --all --out=F.json  every combination, for two checkouts

For every config in configs/, the training step, the held-out loss and decoding are
lowered on shapes to StableHLO, which takes no weights and no compiler. Names of
functions and results are left out, so that renaming changes no hash. For one config
(for all with --all), four things are changed in all combinations: remat, 4-bit weights,
a third of the tokens, and a mesh of 8 CPU devices. Hashes depend on the version of JAX:
--check compares only with the version that wrote the file.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp

from jaxpeft import config_file, experiment
from jaxpeft.errors import InputError
from jaxpeft.generation import decode
from jaxpeft.generation.sampling import Sampling
from jaxpeft.parallel import sharding
from jaxpeft.planning import memory
from jaxpeft.training import step
from jaxpeft.transformer.remat import REMAT

ROOT = pathlib.Path(__file__).parents[1]
FILE = ROOT / "tools" / "step_hashes.json"
WHOLE = ("lora",)  # configs of which all combinations are lowered


def digest(lowered) -> str:
  """A hash of a lowered program without the names in it."""
  text = re.sub(r'jax\.result_info = "[^"]*"', "", lowered.as_text())
  names = {}
  text = re.sub(r"@[\w.$-]+", lambda m: names.setdefault(m[0], f"@{len(names)}"), text)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def hashes(config, count: int) -> dict:
  """{program: hash} of a config on so many devices."""
  if config.model.source.endswith(".gguf"):
    config.model.source = "embedded"  # the file may be absent
  try:
    exp = experiment.abstract(config, jax.devices()[:count])
    mesh = jax.tree.leaves(exp.state)[0].sharding.mesh
    with jax.set_mesh(mesh) if count > 1 else contextlib.nullcontext():
      return _lower(config, exp)
  except InputError:
    return dict(refused=True)


def _lower(config, exp) -> dict:
  net, batch = exp.model.transformer, memory.batch_shapes(exp)
  rows = config.train.batch_size // config.train.accumulate
  sharding.check(net.config, rows, config.data.max_tokens, bool(config.model.quantize))
  found = dict(step=digest(exp.make_step().lower(exp.state, exp.frozen, batch)))
  if config.tokens.fraction < 1:
    return found
  params = exp.adapted().params
  micro = {k: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for k, x in batch.items()}
  found["evaluate"] = digest(step.make_eval(net, exp.objective).lower(params, micro))
  if config.model.remat == "products":
    shapes = (((2, 32), jnp.int32), ((2,), jnp.int32), ((2, 2), jnp.uint32))
    args = (jax.ShapeDtypeStruct(*x) for x in shapes)
    lowered = decode.decode.lower(net, params, *args, 8, (2,), Sampling())
    found["decode"] = digest(lowered)
  return found


def cases(everything: bool):
  """(config file, quantize, fraction, devices, remat)."""
  for path in sorted((ROOT / "configs").glob("*.py")):
    axes = ("", "nf4"), (1.0, 0.3), (1, 8), REMAT
    for quantize, fraction, count, remat in itertools.product(*axes):
      changed = bool(quantize) + (fraction < 1) + (count > 1) + (remat != "products")
      if everything or not changed or path.stem in WHOLE:
        yield path, quantize, fraction, count, remat


def main():
  """Lowers, and writes or compares."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--check", action="store_true")
  parser.add_argument("--write", action="store_true")
  parser.add_argument("--all", action="store_true")
  parser.add_argument("--out")
  parser.add_argument("--only", default="", help="names of configs, comma-separated")
  parser.add_argument("--part", default="0/1", help="I/N: every Nth case from the Ith")
  args = parser.parse_args()
  known = json.loads(FILE.read_text()) if args.check else {}
  if args.check and known["jax"] != jax.__version__:
    print(f"hashes are of JAX {known['jax']}, here is {jax.__version__}: not compared")
    return
  jax.config.update("jax_num_cpu_devices", 8)
  part, parts = map(int, args.part.split("/"))
  found, only = {}, [name for name in args.only.split(",") if name]
  for i, (path, quantize, fraction, count, remat) in enumerate(cases(args.all)):
    if i % parts != part or (only and path.stem not in only):
      continue
    config = config_file.load(str(path), []).unlock()
    if config.scaling.sizes:  # many models, none of which is in the config
      continue
    config.model.remat, config.tokens.fraction = remat, fraction
    config.model.quantize = quantize or config.model.quantize
    name = f"{path.stem} {remat} {quantize or '-'} {fraction} x{count}"
    found[name] = hashes(config, count)
    if i % 20 == 0:
      print(f"{i} {name}", file=sys.stderr, flush=True)
  if args.out or args.write:
    out = FILE if args.write else pathlib.Path(args.out)
    value = dict(jax=jax.__version__, hashes=found)
    out.write_text(json.dumps(value, indent=0, sort_keys=True) + "\n")
  if args.check:
    old = known["hashes"]
    for name in found.keys() - old.keys():
      print(f"new, run --write: {name}")
    wrong = [name for name in found if name in old and found[name] != old[name]]
    for name in wrong:
      print(f"changed: {name}")
    sys.exit(f"{len(wrong)} of {len(found)} programs changed" if wrong else 0)


if __name__ == "__main__":
  main()
