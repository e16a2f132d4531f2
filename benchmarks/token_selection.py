"""LoRA's step when only some tokens carry gradient, on the CPU, in one run.

  python benchmarks/token_selection.py [--rounds 5]

Width 512, 8 layers, batch 4 x 512, float32, LoRA r=16 on all seven projections. All
steps are compiled first and then take turns. FLOPs are those of the products in the
step as JAX traced it; memory is the compiled step's temporaries. Ratios are to all
tokens with the same remat.
"""

import argparse
import math
import os
import statistics
import time

import jax
import jax.extend.core
import numpy as np
import optax
from train_step import SHAPE

import jaxpeft
from jaxpeft import model, tokens, training

BATCH, LENGTH = 4, 512
CASES = [(remat, f) for remat in ("none", "layer") for f in (1.0, 0.3, 0.1)]


def flops(jaxpr) -> int:
  """Of all matrix products, those in loops as often as they run."""
  total = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "dot_general":
      (contracted, _), _ = eqn.params["dimension_numbers"]
      size = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
      total += 2 * size * math.prod(eqn.outvars[0].aval.shape)
    times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
    for inner in jax.extend.core.jaxprs_in_params(eqn.params):
      total += times * flops(inner)
  return total


def contestant(remat: str, fraction: float):
  """(step function, FLOPs, its compiled temporaries)."""
  config = jaxpeft.ModelConfig("llama", head_dim=64, max_positions=512, **SHAPE)
  net = jaxpeft.Transformer(config, remat=remat)
  params = model.init(net, 0)
  rules = {"layers_.*/(attn|mlp)/.*": jaxpeft.LoRA(rank=16, alpha=16.0)}
  params = jaxpeft.adapt(params, rules, jax.random.key(0))
  trainable, frozen = jaxpeft.partition(params, jaxpeft.trainable_mask(params))
  tx = optax.adamw(1e-4)
  state = training.init_state(trainable, tx)
  ids = np.random.default_rng(0).integers(0, 4096, (1, BATCH, LENGTH), np.int32)
  position = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), ids.shape)
  batch = dict(
    tokens=ids,
    targets=ids,
    weights=np.ones(ids.shape, np.float32),
    position=position,
    segment=np.ones_like(ids),
  )
  step_fn = training.make_step(net, tx, selection=tokens.Selection(fraction))
  traced = step_fn.trace(state, frozen, batch)
  compiled = traced.lower().compile()

  def step():
    nonlocal state
    clock = time.perf_counter()
    state, metrics = compiled(state, frozen, batch)
    jax.block_until_ready(metrics)
    return time.perf_counter() - clock

  memory = compiled.memory_analysis().temp_size_in_bytes
  return step, flops(traced.jaxpr.jaxpr), memory


def main():
  """Measures and prints one table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  made = {case: contestant(*case) for case in CASES}
  for step, *_ in made.values():
    step()
  seconds = {case: [] for case in made}
  for _ in range(args.rounds):
    for case, (step, *_) in made.items():
      seconds[case].append(step())

  def ratio(case, to):
    pairs = zip(seconds[case], seconds[to], strict=True)
    return statistics.median(a / b for a, b in pairs)

  print(f"{os.cpu_count()} cores, {args.rounds} rounds, medians of ratios in a round")
  print("remat  tokens  GFLOP  x FLOPs  x time  x time of remat layer  temporaries MiB")
  for case, (_, count, memory) in made.items():
    whole = (case[0], 1.0)
    print(
      f"{case[0]:5}{case[1]:>8.0%}{count / 1e9:>7.0f}{count / made[whole][1]:>9.2f}"
      f"{ratio(case, whole):>8.2f}{ratio(case, ('layer', 1.0)):>23.2f}"
      f"{memory / 2**20:>17.0f}"
    )


if __name__ == "__main__":
  main()
